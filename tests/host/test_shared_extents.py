"""On a filesystem that shares blocks, a clone's blocks are counted once, and those it has written since are its own."""

import asyncio
import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from banger.config import Settings
from banger.model.capacity import Capacity
from banger.paths import Paths
from banger.service.capacity import CapacityService
from banger.store.db import open_database
from banger.store.vms import VmStore
from banger.system.extents import shared_extents
from banger.system.files import allocated_bytes, clone_file
from banger.system.filesystems import filesystem_of
from tests.support.mounted import mounted
from tests.unit.test_store import make_vm

MIB = 1 << 20
SLACK = MIB // 2
pytestmark = [pytest.mark.host, pytest.mark.skipif(os.geteuid() != 0, reason="mounts are root's")]


@pytest.fixture(params=["btrfs", "xfs"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A fresh filesystem of that kind."""
    with mounted(request.param, tmp_path, 512) as point:
        yield point


def write(path: Path, at: int, mib: int, mode: str = "r+b") -> None:
    with path.open(mode) as file:
        file.seek(at)
        file.write(os.urandom(mib * MIB))
        os.fsync(file.fileno())


def show(paths: Paths, vms: VmStore) -> Capacity:
    os.sync()
    return asyncio.run(CapacityService(paths, Settings(), vms).show())


def near(value: int, mib: int) -> bool:
    return abs(value - mib * MIB) <= SLACK


def test_clones_are_counted_once(place: Path, tmp_path: Path) -> None:
    paths = Paths(place / "s", tmp_path / "r", tmp_path / "c")
    image = paths.image("debian").root
    image.parent.mkdir(parents=True)
    write(image, 0, 32, "wb")
    before = filesystem_of(place).used
    ids = ("aaaaaaaaaaaa", "bbbbbbbbbbbb")
    with contextlib.closing(open_database(tmp_path / "db")) as database:
        vms = VmStore(database)
        for name, vm_id in zip(("one", "two"), ids, strict=True):
            vms.add(make_vm(name, vm_id))
            paths.vm(vm_id).state.mkdir(parents=True)
            assert clone_file(image, paths.vm(vm_id).root_copy)
            assert near(allocated_bytes(paths.vm(vm_id).root_copy), 32)
        found = show(paths, vms)
        assert near(found.disk.images_bytes, 32)
        assert near(found.disk.vms_bytes, 0)
        assert near(found.total.allocated_bytes, 64)

        write(paths.vm(ids[0]).root_copy, 8 * MIB, 4)
        found = show(paths, vms)
        one, two = found.vms
        assert near(one.allocated_bytes - one.shared_bytes, 4)
        assert near(two.allocated_bytes - two.shared_bytes, 0)
        assert near(found.disk.images_bytes, 32)
        assert filesystem_of(place).used - before < 10 * MIB

        # the image is deleted: its blocks are the VMs', once; the first has 28 of them and 4 that are its own
        image.unlink()
        found = show(paths, vms)
        one, two = found.vms
        assert near(one.allocated_bytes - one.shared_bytes, 32)
        assert near(two.allocated_bytes - two.shared_bytes, 4)
        assert near(found.disk.vms_bytes, 36)


def test_a_file_of_many_extents_is_read_whole(place: Path) -> None:
    base, clone = place / "base", place / "clone"
    block = 4096
    with base.open("wb") as file:
        for number in range(700):
            file.seek(2 * number * block)
            file.write(os.urandom(block))
        os.fsync(file.fileno())
    assert clone_file(base, clone)
    os.sync()
    extents = shared_extents(clone)
    assert sum(extent.length for extent in extents) == 700 * block
    assert shared_extents(base) == extents
