"""`banger image export` and `import`, as they are typed, with a daemon that may be killed meanwhile."""

import os
import pty
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from banger.paths import Paths
from tests.support.home import Home
from tests.unit.images.tiny import key, keys_in, make_image, needs_e2fsprogs

pytestmark = needs_e2fsprogs
THEIRS = key("T")
LIMIT_S = 60.0


@pytest.fixture(scope="module")
def home() -> Iterator[Home]:
    """With the image `theirs`, which lets in somebody else."""
    made = Home()
    paths = Paths(made.state, made.runtime, made.root / "cache")
    make_image(paths, "theirs", THEIRS.line, seed_key=THEIRS.fingerprint)
    yield made
    made.close()


@pytest.fixture(scope="module")
def archive(home: Home) -> Path:
    path = home.root / "theirs.banger.tar.zst"
    told = home.run("image", "export", "theirs", "-o", str(path)).stdout.decode()
    assert told.startswith(f"{path}: ")
    return path


def until(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def kept(home: Home) -> list[Path]:
    return list((home.root / "cache" / "imports").glob("*/*"))


def test_an_image_goes_out_by_a_pipe_and_comes_in_by_one(home: Home, archive: Path) -> None:
    sent = home.run("image", "export", "theirs", "--output", "-").stdout
    assert sent == archive.read_bytes()
    redirected = home.root / "redirected"
    redirected.write_bytes(b"before ")
    with redirected.open("ab") as file:
        child = home.start("image", "export", "theirs", "-o", "-", stdout=file.fileno())
        child.communicate(timeout=LIMIT_S)
        assert child.returncode == 0
    assert redirected.read_bytes() == b"before " + sent
    home.run("image", "import", "-", "--name", "piped", input=sent)
    image = home.json("image", "show", "piped")
    assert image["origin"].startswith("imported from a pipe at ")
    assert image["seed_key"] != THEIRS.fingerprint
    (line,) = keys_in(home.state / "images" / "piped" / "work-seed.ext4")
    assert THEIRS.line not in line
    home.run("image", "verify", "piped")
    named = f"{home.root}/pipe"
    os.mkfifo(named)
    with subprocess.Popen(["cp", archive, named]):
        home.run("image", "import", named, "--name", "fifo")


def test_a_file_is_checked_and_imported_with_one_document(home: Home, archive: Path) -> None:
    found = home.json("image", "import", str(archive), "--check")
    assert found["checked"]["root"] == ["sha256"]
    assert "sound" in home.run("image", "import", "--check", str(archive)).stdout.decode()
    assert home.json("image", "import", str(archive), "--name", "filed")["name"] == "filed"
    assert "--name" in home.error("image", "import", str(archive), status=4)
    assert "there is no" in home.error("image", "import", "nothing", status=3)
    done = home.run("image", "import", "-", "--name", "short", input=archive.read_bytes()[:-9], status=2)
    assert b"the archive is cut short" in done.stderr
    assert not kept(home)


def test_an_export_overwrites_only_by_force(home: Home, archive: Path) -> None:
    assert "--force" in home.error("image", "export", "theirs", "-o", str(archive), status=4)
    done = home.json("image", "export", "theirs", "-o", str(archive), "--force")
    assert (done["image"], done["path"], done["bytes"]) == ("theirs", str(archive), archive.stat().st_size)
    assert "no image" in home.error("image", "export", "nothing", status=3)
    assert "leave out" in home.run("image", "export", "theirs", "-o", "-", "--json", status=2).stderr.decode()


def test_an_archive_is_nothing_for_a_terminal(home: Home) -> None:
    ours, theirs = pty.openpty()
    try:
        for words, said in ((("export", "theirs", "-o", "-"), b"terminal"), (("import", "-"), b"type")):
            done = subprocess.run(
                [str(Path(home._command[-1])), "image", *words],
                env=home.env, stdin=theirs, stdout=theirs, stderr=subprocess.PIPE, timeout=LIMIT_S, check=False,
            )  # fmt: skip
            assert done.returncode == 2
            assert said in done.stderr
    finally:
        os.close(ours)
        os.close(theirs)


def test_a_daemon_that_is_killed_loses_no_complete_part_and_leaves_no_half_file(home: Home, archive: Path) -> None:
    data = archive.read_bytes()
    child = subprocess.Popen(
        [*home._command, "image", "import", "-", "--name", "killed"],
        env=home.env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert child.stdin is not None
    child.stdin.write(data[: int(len(data) * 0.97)])
    child.stdin.flush()
    until(lambda: any(path.name == "root.ext4.partial" for path in kept(home)))
    half = home.root / "half.partial-0123abcd"
    half.write_bytes(b"half")
    (home.state / "exports").mkdir(exist_ok=True)
    (home.state / "exports" / "0123abcd").symlink_to(half)
    home.kill_daemon()
    child.communicate(timeout=LIMIT_S)
    assert child.returncode != 0
    home.run("image", "list")
    assert {path.name for path in kept(home)} == {"vmlinux", "initramfs.cpio", "work-seed.ext4"}
    assert not half.exists()
    done = home.run("image", "import", str(archive), "--name", "killed")
    assert b"complete since an import that was interrupted: initramfs.cpio, vmlinux, work-seed.ext4" in done.stderr
    home.run("image", "verify", "killed")
    assert not kept(home)
