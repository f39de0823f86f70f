"""Root disks for engines that read no overlays, on filesystems that share blocks and on one that does not."""

import asyncio
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from banger.model.errors import BangerError, HostRequirement
from banger.storage import overlays
from banger.storage.mapped import attach_root, changes_bytes, create_changes, detach_root
from banger.storage.overlays import create_root_raw
from banger.system.ext4 import check_ext4, make_ext4
from banger.system.files import allocated_bytes
from banger.system.loop import loop_device
from tests.support.filesystems import mounted_or_skip
from tests.support.mapper import install
from tests.unit.storage.test_root_raw import Room, Told, names

pytestmark = [pytest.mark.host, pytest.mark.skipif(os.geteuid() != 0, reason="mounts are root's")]
MIB = 1 << 20
VM = "0123456789ab"


@pytest.fixture(params=["btrfs", "xfs"])
def sharing(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    with mounted_or_skip(request.param, tmp_path, 512 * MIB) as point:
        yield point / "here"


@pytest.fixture
def plain(tmp_path: Path) -> Iterator[Path]:
    with mounted_or_skip("ext4", tmp_path, 512 * MIB) as point:
        yield point / "here"


@pytest.fixture
def no_mapper(monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(*_: object) -> str:
        return "there is no device-mapper"

    monkeypatch.setattr(overlays, "create_changes", never)


def image(where: Path) -> Path:
    """A filesystem of 128 MiB with some 40 MiB of files, read-only as images are."""
    where.mkdir()
    tree = where / "tree"
    tree.mkdir()
    (tree / "data").write_bytes(os.urandom(40 * MIB))
    base = where / "base.ext4"
    asyncio.run(make_ext4(base, 128 * MIB, label="root", tree=tree))
    (tree / "data").unlink()
    tree.rmdir()
    base.chmod(0o444)
    os.sync()
    return base


def make(base: Path, told: Told, size: int) -> None:
    where = base.parent
    asyncio.run(create_root_raw(VM, base, where / "root.ext4", where / "root.cow", size, told, Room()))


def free(where: Path) -> int:
    os.sync()
    found = os.statvfs(where)
    return found.f_bavail * found.f_frsize


def test_a_clone_costs_nothing_and_can_be_larger(sharing: Path) -> None:
    base = image(sharing)
    before, told = free(sharing), Told()
    make(base, told, 256 * MIB)
    root = sharing / "root.ext4"
    assert (told.notes, told.seen_bytes) == ([], [])
    assert before - free(sharing) < MIB
    assert root.stat().st_size == 256 * MIB
    with base.open("rb") as one, root.open("rb") as other:
        assert one.read() == other.read(128 * MIB)
        assert other.read() == bytes(128 * MIB)
    asyncio.run(check_ext4(root))
    subprocess.run(["resize2fs", "-f", str(root)], check=True, capture_output=True)  # as the guest's kernel will
    asyncio.run(check_ext4(root))
    asyncio.run(check_ext4(base))
    assert names(sharing) == ["base.ext4", "root.ext4"]


@pytest.mark.usefixtures("no_mapper")
def test_a_full_copy_has_the_images_holes(plain: Path) -> None:
    base, told = image(plain), Told()
    make(base, told, 256 * MIB)
    root = plain / "root.ext4"
    os.sync()
    assert len(told.notes) == 1
    assert told.seen_bytes[-1][0] == told.seen_bytes[-1][1]
    assert allocated_bytes(root) <= allocated_bytes(base) + MIB
    with base.open("rb") as one, root.open("rb") as other:
        assert one.read() == other.read(128 * MIB)
    asyncio.run(check_ext4(root))


@pytest.mark.usefixtures("no_mapper")
def test_a_copy_that_fills_the_disk_leaves_nothing(plain: Path) -> None:
    base = image(plain)
    with (plain / "others").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, free(plain) - 8 * MIB)
    before = free(plain)
    with pytest.raises(HostRequirement, match="No space left"):
        make(base, Told(), 256 * MIB)
    assert names(plain) == ["base.ext4", "others"]
    assert abs(free(plain) - before) < MIB


def backing_files() -> set[str]:
    """Of loop devices, as the kernel tells them."""
    return {path.read_text().strip() for path in Path("/sys/block").glob("loop*/loop/backing_file")}


def released(*files: Path) -> bool:
    """Whether no loop device has these files; udev may have looked into one, and have it open for a moment."""
    deadline = time.monotonic() + 10
    while (left := {str(file) for file in files} & backing_files()) and time.monotonic() < deadline:
        time.sleep(0.01)
    return not left


def test_a_loop_device_goes_when_nobody_has_it_open(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(os.urandom(MIB))
    with loop_device(file) as seen:
        number = os.minor(seen.st_rdev)
        user = os.open(f"/dev/loop{number}", os.O_RDWR)
        assert str(file) in backing_files()
    assert str(file) in backing_files(), "it went while somebody had it open"
    os.pwrite(user, b"changed", 4096)
    os.fsync(user)
    os.close(user)
    assert released(file)
    assert file.read_bytes()[4096:].startswith(b"changed")


def test_a_loop_device_of_a_base_cannot_be_written(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(bytes(MIB))
    file.chmod(0o444)
    with loop_device(file, read_only=True) as seen:
        assert Path(f"/sys/block/loop{os.minor(seen.st_rdev)}/ro").read_text().strip() == "1"
        assert Path(f"/dev/loop{os.minor(seen.st_rdev)}").read_bytes() == bytes(MIB)


def test_a_killed_process_leaves_no_loop_device(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(bytes(MIB))
    pid = os.fork()
    if pid == 0:
        with loop_device(file):
            os.kill(os.getpid(), 9)
        os._exit(1)
    assert os.waitpid(pid, 0)[1] == 9
    assert released(file)


def test_a_mapped_disk_has_its_loop_devices_for_as_long_as_it_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loop devices are real; the device mapper keeps books, and has them open as the kernel's has."""
    base, changes = tmp_path / "base.ext4", tmp_path / "root.cow"
    base.write_bytes(bytes(8 * MIB))
    base.chmod(0o444)
    (tmp_path / "dev").mkdir()
    mapper = install(tmp_path / "dev", monkeypatch)
    assert asyncio.run(create_changes(VM, base, changes, 16 * MIB)) == ""
    assert released(base, changes)
    assert changes.stat().st_size == changes_bytes(16 * MIB)

    asyncio.run(attach_root(VM, base, changes, 16 * MIB))
    assert {str(base), str(changes)} <= backing_files()
    asyncio.run(attach_root(VM, base, changes, 24 * MIB))
    mapper.devices[f"banger-{VM}"].open = 1
    asyncio.run(detach_root(VM))
    assert {str(base), str(changes)} <= backing_files()
    mapper.close(f"banger-{VM}")
    assert released(base, changes)

    mapper.refuses = "snapshot"
    with pytest.raises(BangerError):
        asyncio.run(attach_root(VM, base, changes, 16 * MIB))
    assert mapper.devices == {}
    assert released(base, changes)
