"""What accounting costs: one answer of `GET /capacity` without the way there, over fabricated files of many VMs."""

import asyncio
import contextlib
import os
import statistics
import tempfile
import time
from pathlib import Path

from tests.support import leaks
from tests.unit.test_store import make_vm

from banger.config import Settings
from banger.paths import Paths
from banger.service.capacity import CapacityService
from banger.store.db import open_database
from banger.store.vms import VmStore
from banger.system.files import clone_file, copy_sparse

VMS = 1000
ROUNDS = 15
EXTENTS = 16
PIECE = 65536


def measure(count: int = VMS) -> dict[str, float]:
    """Milliseconds, as medians: with every root disk an overlay, and with every one a raw copy (a clone if it can be).

    Both have a console's and an engine's log beside the disk.
    """
    return {
        "vms": float(count),
        "overlays_ms": _round_trip(count, raw=False),
        "copies_ms": _round_trip(count, raw=True),
    }


def table(found: dict[str, float]) -> str:
    rows = [
        (f"accounting of {found['vms']:.0f} VMs with overlays (aim: under 50 ms)", f"{found['overlays_ms']:.1f} ms"),
        (f"the same with raw copies of {EXTENTS} extents", f"{found['copies_ms']:.1f} ms"),
    ]
    return "\n".join(["| what | median |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in rows)])


def _round_trip(count: int, *, raw: bool) -> float:
    with tempfile.TemporaryDirectory(prefix=leaks.prefix()) as name:
        paths = Paths(Path(name) / "s", Path(name) / "r", Path(name) / "c")
        image = paths.image("debian").root
        image.parent.mkdir(parents=True)
        _sparse(image)
        with contextlib.closing(open_database(paths.database)) as database:
            vms = VmStore(database)
            for number in range(count):
                _add(paths, vms, number, image, raw=raw)
            os.sync()
            service = CapacityService(paths, Settings(), vms)
            return statistics.median(_timed(service) for _ in range(ROUNDS))


def _timed(service: CapacityService) -> float:
    async def main() -> float:
        begun = time.perf_counter()
        await service.show()
        return (time.perf_counter() - begun) * 1e3

    return asyncio.run(main())


def _add(paths: Paths, vms: VmStore, number: int, image: Path, *, raw: bool) -> None:
    vm = make_vm(f"vm{number}", f"{number:012x}")
    vms.add(vm)
    where = paths.vm(vm.id)
    where.state.mkdir(parents=True)
    if not raw:
        _sparse(where.root_overlay)
    elif not clone_file(image, where.root_copy):
        copy_sparse(image, where.root_copy, lambda _done, _total: True)
    for log in (where.console_log, where.engine_log):
        log.write_bytes(b"x" * 4096)


def _sparse(path: Path) -> None:
    with path.open("wb") as file:
        for number in range(EXTENTS):
            file.seek(2 * number * PIECE)
            file.write(b"x" * PIECE)
