"""On a filesystem that shares blocks, a clone's blocks are counted once, and those it has written since are its own.

What is counted is held against the filesystem's own count, and against a look that remembers nothing.
"""

import asyncio
import contextlib
import os
import random
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from banger.config import Settings
from banger.model.capacity import Capacity
from banger.paths import Paths
from banger.service.capacity import CapacityService
from banger.storage.sharing import Sharing
from banger.store.db import open_database
from banger.store.vms import VmStore
from banger.system.extents import shared_extents
from banger.system.files import allocated_bytes, can_clone, clone_file
from banger.system.filesystems import filesystem_of
from tests.support.filesystems import mounted_or_skip
from tests.unit.test_store import make_vm

MIB = 1 << 20
SLACK = MIB // 2
pytestmark = [pytest.mark.host, pytest.mark.skipif(os.geteuid() != 0, reason="mounts are root's")]


@pytest.fixture(params=("btrfs", "xfs"))
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A fresh filesystem of that kind."""
    with mounted_or_skip(request.param, tmp_path, 512 * MIB) as point:
        yield point


@pytest.fixture
def ext4(tmp_path: Path) -> Iterator[Path]:
    with mounted_or_skip("ext4", tmp_path, 512 * MIB) as point:
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


def test_whether_blocks_can_be_shared_is_found_out_by_trying(place: Path, ext4: Path) -> None:
    before = [sorted(where.iterdir()) for where in (place, ext4)]
    assert can_clone(place)
    assert not can_clone(ext4)
    assert [sorted(where.iterdir()) for where in (place, ext4)] == before


class Busy:
    """Disks of images, VMs and volumes that are made, cloned, written, cut and deleted in any order."""

    def __init__(self, place: Path, vms: VmStore, seed: int) -> None:
        self.paths = Paths(place / "s", place / "r", place / "c")
        self.vms = vms
        self.random = random.Random(seed)
        image, ids = self.paths.image("debian"), [f"{number:012x}" for number in range(8)]
        self.possible = [image.root, image.work_seed, self.paths.volume("one").disk, self.paths.volume("two").disk]
        for vm_id in ids:
            vms.add(make_vm(f"vm{vm_id}", vm_id))
            self.possible += [self.paths.vm(vm_id).root_copy, self.paths.vm(vm_id).work_disk]
        for path in self.possible:
            path.parent.mkdir(parents=True, exist_ok=True)
        self._write(image.root, 0, 96)
        self._write(image.work_seed, 16, 32)

    def service(self, sharing: Sharing | None = None) -> CapacityService:
        return CapacityService(self.paths, Settings(), self.vms, sharing=sharing)

    def _write(self, path: Path, at: int, pieces: int) -> None:
        """Pieces of 64 KiB."""
        with path.open("r+b" if path.exists() else "wb") as file:
            file.seek(at << 16)
            file.write(self.random.randbytes(pieces << 16))

    def step(self) -> None:
        there = [path for path in self.possible if path.exists()]
        absent = [path for path in self.possible if not path.exists()]
        path = self.random.choice(there)
        at, pieces = self.random.randrange(100), self.random.randrange(1, 24)
        kinds = ["write", "write", "write", "cut"]
        kinds += ["clone", "clone", "clone"] if absent else []
        kinds += ["delete", "delete"] if len(there) > 4 else []
        match self.random.choice(kinds):
            case "write":
                self._write(path, at, pieces)
            case "cut":
                os.truncate(path, at << 16)
            case "clone":
                assert clone_file(path, self.random.choice(absent))
            case "delete":
                path.unlink()


def all_is_written() -> Sharing:
    """One that takes all for written out, as it is after a `sync`."""
    return Sharing(now=lambda: time.time() + 100)


def blocks_of(path: Path) -> set[int]:
    """Where a file's blocks are, as another program tells it."""
    rows = subprocess.run(["filefrag", "-v", str(path)], check=True, capture_output=True, text=True).stdout
    found: set[int] = set()
    for first, last in re.findall(r"^ +\d+: +\d+\.\. +\d+: +(\d+)\.\. +(\d+):", rows, re.MULTILINE):
        found.update(range(int(first), int(last) + 1))
    return found


def comes_to_use(place: Path, expected: int) -> bool:
    """Within 10 s: XFS frees the blocks of deleted files a little later; and has some metadata more, or less."""
    deadline = time.monotonic() + 10
    while abs(filesystem_of(place).used - expected) > 64 << 10:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


@pytest.mark.parametrize("seed", range(3))
def test_what_is_counted_is_what_is_there(place: Path, tmp_path: Path, seed: int) -> None:
    with contextlib.closing(open_database(tmp_path / "db")) as database:
        busy = Busy(place, VmStore(database), seed)
        lasting, metadata = busy.service(all_is_written()), 0
        for _ in range(40):
            for _ in range(busy.random.randrange(4)):
                busy.step()
            os.sync()
            found, anew = asyncio.run(lasting.show()), asyncio.run(busy.service().show())
            assert (found.images, found.vms, found.volumes) == (anew.images, anew.vms, anew.volumes)
            own = found.disk.vms_bytes + found.disk.images_bytes + found.disk.volumes_bytes
            if place.name == "xfs":
                metadata = metadata or filesystem_of(place).used - own
                assert comes_to_use(place, own + metadata)
            else:
                # Btrfs gives back a part of an extent only when the last part is given back
                assert own == 4096 * len(set().union(*(blocks_of(path) for path in busy.possible if path.exists())))
