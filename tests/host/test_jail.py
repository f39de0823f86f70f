"""A jail's files: by hard link on one filesystem, by a mount across two; nothing of it stays."""

import asyncio
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from banger.engine.jail import Inside, dismantle, furnish
from banger.model.errors import NotFound
from banger.model.machine import Machine
from banger.paths import Paths
from banger.system.loop import loop_device
from tests.unit.engine.test_jail import MACHINE

pytestmark = [pytest.mark.host, pytest.mark.skipif(os.geteuid() != 0, reason="mounts are root's")]
UID = 2_000_000_007


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Path]:
    """A directory on another filesystem."""
    place = tmp_path / "elsewhere"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "test", str(place)], check=True)
    yield place
    subprocess.run(["umount", str(place)], check=True)


def view(kernel: Path, disk: Path) -> Inside:
    machine: Machine = MACHINE
    return Inside(machine, {"/kernel": str(kernel), "/disks/root": str(disk)}, frozenset({"/disks/root"}))


@pytest.mark.parametrize("across", [False, True], ids=["hard links", "mounts"])
def test_the_files_are_there_and_go(tmp_path: Path, elsewhere: Path, across: bool) -> None:
    source = elsewhere if across else tmp_path
    kernel, disk, log = source / "vmlinux", source / "root.ext4", tmp_path / "engine.log"
    kernel.write_bytes(b"kernel")
    kernel.chmod(0o444)
    disk.write_bytes(b"disk")
    log.touch()
    jail = Paths(tmp_path / "s", tmp_path / "r", tmp_path / "c").jail("0123456789ab")
    asyncio.run(furnish(jail, view(kernel, disk), UID, log))
    inside = jail.root / "disks/root"
    assert (jail.root / "kernel").read_bytes() == b"kernel"
    assert (inside.stat().st_uid, jail.run.stat().st_uid, jail.root.stat().st_uid) == (UID, UID, 0)
    inside.write_bytes(b"changed")
    assert disk.read_bytes() == b"changed"
    assert kernel.stat().st_uid == 0
    mounted = str(jail.root) in Path("/proc/self/mountinfo").read_text()
    assert mounted is across
    if across:
        with pytest.raises(OSError, match="Read-only"):
            (jail.root / "kernel").write_bytes(b"x")
    asyncio.run(dismantle(jail))
    asyncio.run(dismantle(jail))
    assert not jail.directory.exists()
    assert str(jail.root) not in Path("/proc/self/mountinfo").read_text()
    assert (kernel.read_bytes(), disk.read_bytes()) == (b"kernel", b"changed")


def test_a_file_that_is_missing_is_an_error_and_the_rest_can_be_taken_away(tmp_path: Path) -> None:
    jail = Paths(tmp_path / "s", tmp_path / "r", tmp_path / "c").jail("0123456789ab")
    (tmp_path / "log").touch()
    with pytest.raises(NotFound, match="is missing"):
        asyncio.run(furnish(jail, view(tmp_path / "no", tmp_path / "no"), UID, tmp_path / "log"))
    asyncio.run(dismantle(jail))
    assert not jail.directory.exists()


def write(path: str, data: bytes) -> None:
    with Path(path).open("r+b", buffering=0) as file:
        file.write(data)
        os.fsync(file.fileno())


def as_the_jailed_user(root: Path, does: Callable[[], object]) -> int:
    """Do something in the chroot; 0 when that could be done."""
    pid = os.fork()
    if pid == 0:
        try:
            os.chroot(root)
            os.setgroups([])
            os.setgid(UID)
            os.setuid(UID)
            does()
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitpid(pid, 0)[1]


def test_a_block_device_has_a_file_of_the_jails_own(tmp_path: Path) -> None:
    kernel, disk, log = tmp_path / "vmlinux", tmp_path / "disk", tmp_path / "engine.log"
    kernel.write_bytes(b"kernel")
    disk.write_bytes(bytes(1 << 20))
    log.touch()
    jail = Paths(tmp_path / "s", tmp_path / "r", tmp_path / "c").jail("0123456789ab")
    with loop_device(disk) as seen:
        device = Path(f"/dev/loop{os.minor(seen.st_rdev)}")
        before = device.stat()
        asyncio.run(furnish(jail, view(kernel, device), UID, log))
        inside = jail.root / "disks/root"
        found = inside.stat()
        assert (found.st_rdev, found.st_uid, found.st_mode & 0o777) == (seen.st_rdev, UID, 0o600)
        assert as_the_jailed_user(jail.root, lambda: write("/disks/root", b"changed")) == 0
        assert device.read_bytes().startswith(b"changed")
        assert (device.stat().st_uid, device.stat().st_mode) == (before.st_uid, before.st_mode)
        asyncio.run(dismantle(jail))
    assert not jail.directory.exists()
    assert device.exists()
