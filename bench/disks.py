"""What disks cost: roots and work disks of new VMs, and accounting; on ext4 and on XFS, each on a loop device."""

import asyncio
import contextlib
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from tests.support import leaks
from tests.support.filesystems import CannotMount, mounted

from banger.images.work_seed import make_work_seed
from banger.storage.overlays import create_root_overlay, create_root_raw
from banger.storage.work_disks import create_work_disk
from banger.system.extents import shared_extents
from banger.system.files import allocated_bytes, can_clone
from bench import capacity

KINDS = ("ext4", "xfs")
MIB, GIB = 1 << 20, 1 << 30
BASES = {"0.3 GiB": 3 * GIB // 10, "1 GiB": GIB, "4 GiB": 4 * GIB}
COPIED_MAX = GIB
WORK_DISKS = {"8 GiB": 8 * GIB, "64 GiB": 64 * GIB}
ROUNDS, COPIES, RATE = 15, 3, 20
NEEDED = 8 * GIB
Found = dict[str, Any]
Makers = Mapping[str, Callable[[Path], Awaitable[None]]]


class Quiet:
    """Progress that nobody follows."""

    def stage(self, name: str, *, deadline_s: float | None = None) -> contextlib.AbstractAsyncContextManager[None]:
        return contextlib.nullcontext()

    def progress(self, done: int, total: int | None, unit: str) -> None:
        pass

    def note(self, text: str) -> None:
        pass


async def make_work_disk(seed: Path, size: int, target: Path) -> None:
    """As a VM gets it."""
    await create_work_disk(seed, target, size, Quiet(), lambda _: contextlib.nullcontext())


def measure() -> Found:
    """By filesystem; of one that cannot be had here, why."""
    found: Found = {}
    with tempfile.TemporaryDirectory(prefix=leaks.prefix()) as name:
        for kind in KINDS:
            try:
                if (free := shutil.disk_usage(name).free) < NEEDED:
                    raise CannotMount(f"{free / GIB:.1f} GiB are free, {NEEDED / GIB:.0f} are needed")
                with mounted(kind, Path(name), 2 * NEEDED) as place:
                    found[kind] = _measured(place)
            except CannotMount as reason:
                found[kind] = str(reason)
    return found


def _measured(place: Path) -> Found:
    bases = {name: _filled(place / f"base-{size}", size) for name, size in BASES.items()}
    home, seed, one = place / "home", place / "work-seed.ext4", bases["0.3 GiB"]
    home.mkdir()
    asyncio.run(make_work_seed(home, seed))
    os.sync()
    shares = can_clone(place)
    overlays: Makers = {name: partial(create_root_overlay, base) for name, base in bases.items()}
    copies: Makers = {name: partial(_copy, base) for name, base in bases.items() if shares or BASES[name] <= COPIED_MAX}
    work_disks: Makers = {name: partial(make_work_disk, seed, size) for name, size in WORK_DISKS.items()}
    found = {
        "shares": shares,
        "overlay_ms": _in_turn(place, ROUNDS, overlays),
        "root_copy_ms": _in_turn(place, ROUNDS if shares else COPIES, copies),
        "work_disk_ms": _in_turn(place, ROUNDS, work_disks),
        "overlays_per_s": _rate(place, one, together=False),
        "overlays_together_per_s": _rate(place, one, together=True),
    }
    return found | _fresh(place, one, seed)


def _filled(path: Path, size: int) -> Path:
    piece = os.urandom(8 * MIB)
    with path.open("wb", buffering=0) as file:
        while (at := file.tell()) < size:
            file.write(piece[: size - at])
    return path


async def _copy(base: Path, target: Path) -> None:
    changes = target.with_name("changes")
    await create_root_raw("0" * 12, base, target, changes, None, Quiet(), lambda _: contextlib.nullcontext())


def _in_turn(place: Path, rounds: int, makers: Makers) -> dict[str, float]:
    """Milliseconds, as medians: each makes a file, which is gone before the next."""
    target = place / "made"

    async def main() -> dict[str, list[float]]:
        found: dict[str, list[float]] = {name: [] for name in makers}
        for _ in range(rounds):
            for name, make in makers.items():
                begun = time.perf_counter()
                await make(target)
                found[name].append((time.perf_counter() - begun) * 1e3)
                target.unlink()
        return found

    return {name: statistics.median(values) for name, values in asyncio.run(main()).items()}


def _rate(place: Path, base: Path, *, together: bool) -> float:
    """Overlays in a second, as a median: of 20 that are made one after another, or at once."""

    async def main(targets: list[Path]) -> float:
        begun = time.perf_counter()
        if together:
            await asyncio.gather(*(create_root_overlay(base, target) for target in targets))
        else:
            for target in targets:
                await create_root_overlay(base, target)
        return RATE / (time.perf_counter() - begun)

    rates = []
    for _ in range(COPIES):
        targets = [place / f"{number}.qcow2" for number in range(RATE)]
        rates.append(asyncio.run(main(targets)))
        for target in targets:
            target.unlink()
    return statistics.median(rates)


def _fresh(place: Path, base: Path, seed: Path) -> Found:
    """What the disks of a VM take as they are made, and accounting of 1,000 such VMs."""
    overlay, work = place / "root.qcow2", place / "work.ext4"

    async def main() -> None:
        await create_root_overlay(base, overlay)
        await make_work_disk(seed, WORK_DISKS["8 GiB"], work)

    asyncio.run(main())
    os.sync()
    return {
        "overlay_bytes": allocated_bytes(overlay),
        "work_disk_bytes": allocated_bytes(work),
        "work_disk_shared_bytes": sum(extent.length for extent in shared_extents(work)),
        "accounting": capacity.measure(place, overlay, seed, work),
    }


def table(found: Found) -> str:
    """One column for each filesystem."""
    measured = {kind: of for kind, of in found.items() if isinstance(of, dict)}
    rows = [_row(what, [show(of) for of in measured.values()]) for what, show in ROWS.items()]
    left_out = [f"{kind} was not measured: {why}." for kind, why in found.items() if kind not in measured]
    return "\n".join([_row("what", list(measured)), _row("---", ["---"] * len(measured)), *rows, *left_out])


def _row(what: str, values: list[str]) -> str:
    return "| " + " | ".join((what, *values)) + " |"


def _times(which: str) -> Callable[[Found], str]:
    """All sizes' milliseconds, and how many times the smallest's the largest is."""

    def shown(of: Found) -> str:
        values = list(of[which].values())
        return f"{', '.join(f'{value:.1f}' for value in values)} ms; {values[-1] / values[0]:.2f}"

    return shown


ROWS: dict[str, Callable[[Found], str]] = {
    f"overlay of an image of {', '.join(BASES)}; ratio (aim: flat)": _times("overlay_ms"),
    "20 overlays, one after another": lambda of: f"{of['overlays_per_s']:.0f}/s",
    "20 overlays, at once": lambda of: f"{of['overlays_together_per_s']:.0f}/s",
    "a root for firecracker of the same images": lambda of: "shares blocks" if of["shares"] else "full copy",
    "time of it; ratio": _times("root_copy_ms"),
    f"work disk of {', '.join(WORK_DISKS)}; ratio": _times("work_disk_ms"),
    "allocated of a new VM's overlay": lambda of: f"{of['overlay_bytes'] / 1024:.0f} KiB",
    "of its work disk, what it shares with its seed included": lambda of: f"{of['work_disk_bytes'] / 1024:.0f} KiB",
    f"accounting of {capacity.VMS} VMs, a daemon's first look": lambda of: f"{of['accounting']['first_ms']:.1f} ms",
    "the next looks, 20 disks written since (aim: under 50)": lambda of: f"{of['accounting']['next_ms']:.1f} ms",
    "one bare lstat of each of these disks": lambda of: f"{of['accounting']['bare_ms']:.1f} ms",
}
