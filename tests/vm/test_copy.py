"""Files in and out of a real machine."""

import hashlib
import io
import json
import os
import random
import signal
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.home import Home

MIB = 1 << 20
AGENT_MAX = 15 * MIB
DEADLINE_S = 60.0


def shell(home: Home, vm: str, script: str) -> str:
    return home.run("vm", "exec", vm, "--", "sh", "-c", script).stdout.decode()


@pytest.fixture
def place(home: Home, booted: str) -> Iterator[str]:
    """A directory in the guest, on its disk."""
    path = "/var/tmp/copies"
    shell(home, booted, f"rm -rf {path} && mkdir {path}")
    yield path
    shell(home, booted, f"rm -rf {path}")


def digests(top: Path) -> str:
    """As sha256sum prints them."""
    files = sorted(path for path in top.rglob("*") if path.is_file())
    return "".join(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(top)}\n" for path in files)


def forget_peak(home: Home, vm: str) -> None:
    """From here on the peak is counted anew (proc(5), clear_refs): other tests have asked things of the agent too."""
    shell(home, vm, "echo 5 > /proc/$(systemctl show -P MainPID banger-agent)/clear_refs")


def agent_peak(home: Home, vm: str) -> int:
    script = "cat /proc/$(systemctl show -P MainPID banger-agent)/status"
    return int(shell(home, vm, script).partition("VmHWM:")[2].split()[0]) * 1024


def eventually(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_a_large_tree_goes_in_and_comes_back(home: Home, booted: str, place: str, tmp_path: Path) -> None:
    source, noise = tmp_path / "tree", random.Random(4)
    for number in range(400):
        file = source / f"dir {number % 20}" / f"file {number}"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(noise.randbytes(MIB // 2))
    forget_peak(home, booted)
    inward = home.json("vm", "cp", str(source), f"{booted}:{place}")
    assert inward == {"entries": 421, "bytes": 200 * MIB, "skipped": [], "seconds": inward["seconds"]}
    inside = shell(home, booted, f"cd {place}/tree && find . -type f -printf '%P\\0' | sort -z | xargs -0 sha256sum")
    assert sorted(inside.splitlines()) == sorted(digests(source).splitlines())
    outward = home.json("vm", "cp", f"{booted}:{place}/tree", str(tmp_path / "back"))
    assert outward | {"seconds": 0} == inward | {"seconds": 0}
    assert digests(tmp_path / "back") == digests(source)
    assert agent_peak(home, booted) < AGENT_MAX


def test_a_gibibyte_of_holes_costs_next_to_nothing(home: Home, booted: str, place: str, tmp_path: Path) -> None:
    with (tmp_path / "holes").open("wb") as file:
        file.truncate(1 << 30)
        file.seek(700 * MIB)
        file.write(b"something")
    document = home.json("vm", "cp", str(tmp_path / "holes"), f"{booted}:{place}")
    assert document["bytes"] < MIB
    assert int(shell(home, booted, f"stat -c %s {place}/holes")) == 1 << 30
    assert int(shell(home, booted, f"du -k {place}/holes").split()[0]) < 1024
    home.run("vm", "cp", f"{booted}:{place}/holes", str(tmp_path / "back"))
    back = (tmp_path / "back").stat()
    assert back.st_size == 1 << 30
    assert back.st_blocks * 512 < MIB
    with (tmp_path / "back").open("rb") as file:
        file.seek(700 * MIB)
        assert file.read(9) == b"something"


def test_owners_are_roots_a_users_or_kept(home: Home, booted: str, place: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "file").chmod(0o4755)
    for options, name in (((), "plain"), (("--user", "daemon"), "given"), (("-a",), "kept")):
        home.run("vm", "cp", *options, str(tmp_path / "file"), f"{booted}:{place}/{name}")
    assert shell(home, booted, f"cd {place} && stat -c '%U %a' plain given").split() == ["root", "755", "daemon", "755"]
    assert shell(home, booted, f"cd {place} && stat -c '%u %a' kept").split() == [str(os.geteuid()), "4755"]
    shell(home, booted, f"cd {place} && chown 1234:5678 kept && chmod 4755 kept")
    home.run("vm", "cp", f"{booted}:{place}/kept", str(tmp_path / "ours"))
    home.run("vm", "cp", "-a", f"{booted}:{place}/kept", str(tmp_path / "theirs"))
    ours, theirs = (tmp_path / "ours").stat(), (tmp_path / "theirs").stat()
    assert (ours.st_uid, ours.st_mode & 0o7777) == (os.geteuid(), 0o755)
    if os.geteuid() == 0:
        assert (theirs.st_uid, theirs.st_gid, theirs.st_mode & 0o7777) == (1234, 5678, 0o4755)


def test_archives_on_standard_input_and_output(home: Home, booted: str, place: str, tmp_path: Path) -> None:
    (tmp_path / "src" / "sub").mkdir(parents=True)
    (tmp_path / "src" / "sub" / "file").write_text("through a pipe")
    archive = subprocess.run(["tar", "cC", str(tmp_path / "src"), "."], capture_output=True, check=True).stdout
    home.run("vm", "cp", "-", f"{booted}:{place}/new", input=archive)
    assert shell(home, booted, f"cat {place}/new/sub/file") == "through a pipe"
    with tarfile.open(fileobj=io.BytesIO(home.run("vm", "cp", f"{booted}:{place}/new", "-").stdout)) as opened:
        assert sorted(opened.getnames()) == ["new", "new/sub", "new/sub/file"]


def test_a_relative_path_begins_at_roots_home_and_proc_is_left_out(home: Home, booted: str, tmp_path: Path) -> None:
    (tmp_path / "note").write_text("home")
    home.run("vm", "cp", str(tmp_path / "note"), f"{booted}:")
    assert shell(home, booted, "cat /root/note && rm /root/note") == "home"
    home.run("vm", "cp", f"{booted}:/proc/cpuinfo", str(tmp_path))
    assert (tmp_path / "cpuinfo").read_text() == shell(home, booted, "cat /proc/cpuinfo")


def test_a_full_disk_in_the_guest_is_told(home: Home, booted: str, tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(bytes(4 * MIB))
    shell(home, booted, "mkdir -p /mnt/small && mount -t tmpfs -o size=1m none /mnt/small")
    try:
        assert "No space left" in home.error("vm", "cp", str(tmp_path / "big"), f"{booted}:/mnt/small", status=1)
        assert shell(home, booted, "ls -A /mnt/small") == ""
    finally:
        shell(home, booted, "umount /mnt/small && rmdir /mnt/small")


def test_control_c_leaves_nothing_half_made(home: Home, booted: str, place: str, tmp_path: Path) -> None:
    with (tmp_path / "big").open("wb") as file:
        for _ in range(512):
            file.write(os.urandom(MIB))
    process = home.start("vm", "cp", str(tmp_path / "big"), f"{booted}:{place}")
    eventually(lambda: shell(home, booted, f"ls -A {place}"))
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=DEADLINE_S)
    assert (process.returncode, errors) == (130, b"interrupted\n")
    eventually(lambda: not shell(home, booted, f"ls -A {place}"))
    assert json.loads(home.run("vm", "health", booted, "--json").stdout)["status"] == "healthy"
