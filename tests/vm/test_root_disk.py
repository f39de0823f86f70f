"""What a machine's root disk rests on: an image that is locked, and the kernel's device mapper, tried in a guest's."""

import io
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

import banger
from tests.support import mapped_in_guest
from tests.support.home import Home
from tests.unit.images.test_locks import locked
from tests.vm.conftest import track

NO_MAPPER = 77


@pytest.fixture
def alone(images: Path, tmp_path: Path) -> Iterator[Home]:
    """A banger with an image that no other machine uses."""
    shutil.copytree(images.resolve().parent / "ssh", tmp_path / "ssh")
    (tmp_path / "images").mkdir()
    copy = ["cp", "--archive", "--sparse=always", "--reflink=auto", str(images / "debian"), str(tmp_path / "images")]
    subprocess.run(copy, check=True)
    made = track(Home(images=tmp_path / "images"))
    yield made
    made.close()
    shutil.rmtree(tmp_path / "images")


def test_an_image_is_locked_for_as_long_as_its_machine_runs_whoever_is_killed(alone: Home) -> None:
    root = alone.state / "images" / "debian" / "root.ext4"
    assert root.stat().st_mode & 0o222 == 0
    assert not locked(root)
    alone.run("vm", "create", "--name", "a")
    assert locked(root)
    command = ["flock", "--nonblock", "--exclusive", str(root), "true"]
    assert subprocess.run(command, check=False).returncode == 1
    alone.kill_daemon()
    assert locked(root)
    engine = psutil.Process(int(alone.json("vm", "show", "a")["engine_pid"]))
    holders = [process for process in (engine, *engine.children(recursive=True)) if _has_open(process, root.resolve())]
    assert engine in holders
    alone.run("vm", "stop", "a")
    assert not locked(root)
    alone.run("vm", "start", "a")
    assert locked(root)
    alone.run("vm", "delete", "--yes", "a")
    assert not locked(root)


def _has_open(process: psutil.Process, path: Path) -> bool:
    return any(link.resolve() == path for link in Path(f"/proc/{process.pid}/fd").iterdir() if link.exists())


def test_the_kernels_device_mapper_does_what_is_asked_of_it(home: Home, booted: str) -> None:
    """The tests' hosts may have none: the code that talks to it is run in a guest, whose kernel has one."""
    source = Path(banger.__file__).parent
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for path in source.rglob("*.py"):
            archive.add(path, f"banger/{path.relative_to(source)}")
        archive.add(mapped_in_guest.__file__, "mapped_in_guest.py")
    modules = ["modprobe", "--all", "loop", "dm-mod", "dm-snapshot", "dm-zero"]
    if home.run("vm", "exec", booted, "--", *modules, status=None).returncode != 0:
        pytest.skip("the guest's kernel has no device mapper")
    try:
        home.run("vm", "exec", booted, "--", "mkdir", "/var/tmp/mapped")
        home.run("vm", "exec", "-i", booted, "--", "tar", "x", "-C", "/var/tmp/mapped", input=packed.getvalue())
        script = "cd /var/tmp/mapped && PYTHONPATH=. exec python3 mapped_in_guest.py /var/tmp/mapped/here"
        done = home.run("vm", "exec", booted, "--", "sh", "-c", script, status=None)
        if done.returncode == NO_MAPPER:
            pytest.skip("the guest's kernel has no device mapper that can be used")
        assert (done.returncode, done.stdout.decode().strip()) == (0, "all of it"), done.stderr.decode()
    finally:
        clean = "umount /var/tmp/mapped/here/small; rm -rf /var/tmp/mapped"
        home.run("vm", "exec", booted, "--", "sh", "-c", clean, status=None)
