"""What files take: blocks, not sizes; and nothing that is not there."""

import os
from pathlib import Path

import pytest

from banger.model.capacity import Extent, Used
from banger.storage.sharing import SharedOf
from banger.storage.usage import measure, measure_disks
from banger.system.extents import shared_extents

KIB, GIB = 1 << 10, 1 << 30


@pytest.fixture
def device(tmp_path: Path) -> int:
    return tmp_path.stat().st_dev


def nothing_shared(_path: str, _stat: os.stat_result) -> tuple[Extent, ...]:
    return ()


def disks_of(directory: Path, device: int, shared_of: SharedOf) -> Used:
    (used,) = measure_disks(str(directory.parent), [directory.name], device, shared_of)
    return used


def written(path: Path, kib: int) -> int:
    """A file of so many KiB that are on the disk; what it takes there."""
    with path.open("wb") as file:
        file.write(os.urandom(kib * KIB))
        os.fsync(file.fileno())
    return path.stat().st_blocks * 512


def test_holes_take_nothing(tmp_path: Path, device: int) -> None:
    with (tmp_path / "root.qcow2").open("wb") as file:
        file.truncate(100 * GIB)
        file.seek(50 * GIB)
        file.write(bytes(range(256)) * 256)
        os.fsync(file.fileno())
    assert 64 * KIB <= measure(tmp_path, device, nothing_shared).allocated < 1024 * KIB


def test_everything_below_the_directory_counts(tmp_path: Path, device: int) -> None:
    (tmp_path / "more").mkdir()
    taken = written(tmp_path / "root.qcow2", 300) + written(tmp_path / "console.log", 20)
    taken += written(tmp_path / "more" / "work.ext4", 40)
    assert taken >= 360 * KIB
    assert measure(tmp_path, device, nothing_shared) == Used(taken, 0, ())


def test_a_vms_disks_are_its_root_and_its_work_disk(tmp_path: Path, device: int) -> None:
    written(tmp_path / "console.log", 20)
    assert disks_of(tmp_path, device, nothing_shared) == Used()
    overlay = written(tmp_path / "root.qcow2", 100)
    assert disks_of(tmp_path, device, nothing_shared) == Used(overlay)
    copy = written(tmp_path / "root.ext4", 300)
    assert disks_of(tmp_path, device, nothing_shared).allocated == overlay + copy
    assert disks_of(tmp_path, device + 1, nothing_shared) == Used(0, overlay + copy)
    changes, work = written(tmp_path / "root.cow", 40), written(tmp_path / "work.ext4", 60)
    assert disks_of(tmp_path, device, nothing_shared).allocated == overlay + copy + changes + work
    assert disks_of(tmp_path / "gone", device, nothing_shared) == Used()
    assert disks_of(tmp_path / "gone" / "too", device, nothing_shared) == Used()


def test_only_raw_disks_are_asked_for_what_they_share(tmp_path: Path, device: int) -> None:
    asked = []

    def shared_of(path: str, stat: os.stat_result) -> tuple[Extent, ...]:
        asked.append((Path(path).name, stat.st_ino))
        return (Extent(0, 4096),)

    for name in ("root.qcow2", "root.ext4", "root.cow", "work.ext4"):
        written(tmp_path / name, 20)
    assert len(disks_of(tmp_path, device, shared_of).shared) == 2
    assert asked == [(name, (tmp_path / name).stat().st_ino) for name in ("root.ext4", "work.ext4")]
    assert disks_of(tmp_path, device + 1, shared_of).shared == ()


def test_links_and_pipes_take_nothing(tmp_path: Path, device: int) -> None:
    (tmp_path / "vm").mkdir()
    written(tmp_path / "elsewhere", 100)
    (tmp_path / "vm" / "root.ext4").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "vm" / "all").symlink_to(tmp_path)
    os.mkfifo(tmp_path / "vm" / "console.in")
    os.mkfifo(tmp_path / "vm" / "pipe.ext4")
    assert measure(tmp_path / "vm", device, nothing_shared) == Used()


def test_the_directory_itself_may_be_a_link(tmp_path: Path, device: int) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    taken = written(tmp_path / "real" / "root.ext4", 50)
    assert measure(tmp_path / "link", device, nothing_shared).allocated == taken


def test_what_is_gone_takes_nothing(tmp_path: Path, device: int) -> None:
    assert measure(tmp_path / "nothing", device, nothing_shared) == Used()
    (tmp_path / "file").touch()
    assert measure(tmp_path / "file", device, nothing_shared) == Used()
    assert shared_extents(tmp_path / "nothing") == ()


def test_another_filesystem_is_counted_apart(tmp_path: Path, device: int) -> None:
    taken = written(tmp_path / "root.ext4", 50)
    assert measure(tmp_path, device + 1, nothing_shared) == Used(0, taken, ())


def test_no_extents_of_what_is_no_plain_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/dev/zero")
    for path in (tmp_path, tmp_path / "pipe", tmp_path / "link", Path("/proc/self/status")):
        assert shared_extents(path) == ()
