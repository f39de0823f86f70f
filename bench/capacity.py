"""What accounting costs: one answer of `GET /capacity` without the way there, over the files of many VMs."""

import asyncio
import contextlib
import os
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

from tests.unit.test_store import make_vm

from banger.config import Settings
from banger.paths import Paths, VmPaths
from banger.service.capacity import CapacityService
from banger.storage.sharing import Sharing
from banger.store.db import open_database
from banger.store.vms import VmStore
from banger.system.files import copy_sparse

VMS = 1000
ROUNDS, FIRST_ROUNDS = 15, 5
WRITING = 20
PIECES = 16
BLOCK = 4096
Piece = tuple[int, bytes]


def measure(place: Path, overlay: Path, seed: Path, grown: Path) -> dict[str, float]:
    """Milliseconds, as medians: the first look of a daemon, a look after others, 20 work disks written since, and
    for comparison the bare calls to the kernel that ask for the blocks of these disks.

    Each VM has a copy of `overlay` and a work disk: a copy of `seed`, as banger makes it, with what
    `grown` has otherwise, and 16 blocks of its guest, written in it. Logs of console and engine are beside them.
    """
    paths = Paths(place / "s", place / "r", place / "c")
    kept = paths.image("debian").work_seed
    kept.parent.mkdir(parents=True)
    copy_sparse(seed, kept, lambda _done, _total: True)
    size, pieces = grown.stat().st_size, [*_otherwise(grown, kept), *_of_guest(grown.stat().st_size)]
    with contextlib.closing(open_database(paths.database)) as database:
        vms = VmStore(database)
        for number in range(VMS):
            vm = make_vm(f"vm{number}", f"{number:012x}")
            vms.add(vm)
            _furnish(paths.vm(vm.id), overlay.read_bytes(), kept, size, pieces)
        os.sync()
        disks = [path for number in range(VMS) for path in _disks(paths.vm(f"{number:012x}"))]
        writing = [paths.vm(f"{number:012x}").work_disk for number in range(WRITING)]
        first = [_look(_service(paths, vms)) for _ in range(FIRST_ROUNDS)]
        service = _service(paths, vms)
        _look(service)
        return {
            "first_ms": statistics.median(first),
            "next_ms": statistics.median(_look(service, writing) for _ in range(ROUNDS)),
            "bare_ms": statistics.median(_bare(disks) for _ in range(ROUNDS)),
        }


def _service(paths: Paths, vms: VmStore) -> CapacityService:
    # all is written out by now, which a daemon believes a minute later
    return CapacityService(paths, Settings(), vms, sharing=Sharing(now=lambda: time.time() + 100))


def _look(service: CapacityService, writing: Sequence[Path] = ()) -> float:
    for path in writing:
        os.utime(path)

    async def main() -> float:
        begun = time.perf_counter()
        await service.show()
        return (time.perf_counter() - begun) * 1e3

    return asyncio.run(main())


def _disks(where: VmPaths) -> list[str]:
    return [str(where.root_overlay), str(where.work_disk)]


def _bare(disks: Sequence[str]) -> float:
    begun = time.perf_counter()
    for path in disks:
        os.lstat(path)
    return (time.perf_counter() - begun) * 1e3


def _furnish(where: VmPaths, overlay: bytes, seed: Path, size: int, pieces: Sequence[Piece]) -> None:
    where.state.mkdir(parents=True)
    where.root_overlay.write_bytes(overlay)
    copy_sparse(seed, where.work_disk, lambda _done, _total: True)
    with where.work_disk.open("r+b", buffering=0) as file:
        file.truncate(size)
        for at, data in pieces:
            os.pwrite(file.fileno(), data, at)
    for log in (where.console_log, where.engine_log):
        log.write_bytes(b"x" * BLOCK)


def _otherwise(disk: Path, seed: Path) -> list[Piece]:
    """The blocks of `disk` that are not as in `seed`."""
    with disk.open("rb", buffering=0) as file, seed.open("rb", buffering=0) as original:
        end, found = 0, []
        while end < disk.stat().st_size:
            try:
                at = file.seek(end, os.SEEK_DATA)
            except OSError:  # only a hole is left
                break
            end = file.seek(at, os.SEEK_HOLE)
            for block in range(at, end, BLOCK):
                data = os.pread(file.fileno(), BLOCK, block)
                if data != os.pread(original.fileno(), BLOCK, block).ljust(BLOCK, b"\0"):
                    found.append((block, data))
    return found


def _of_guest(size: int) -> list[Piece]:
    step = size // (PIECES + 1)
    return [(number * step // BLOCK * BLOCK, b"x" * BLOCK) for number in range(1, PIECES + 1)]
