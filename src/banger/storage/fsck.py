"""What e2fsck says of a filesystem that nothing has mounted. Only here does `check` touch what a guest wrote."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from banger.system.e2fsprogs import run_tool

_CHECK_S = 1800.0
_UNCORRECTED = 4  # and above: it did not get to the end
LINES_MAX = 8
# what is no finding: titles, sums, answers, and what a mount does as well
_IDLE = re.compile(
    r"Pass \d|e2fsck \d|.*: \d+/\d+ files |.*\*{5}|\w+( \w+)?\? (no|yes)$|recovering journal$|Clearing orphaned "
)
_ANSWER = re.compile(r"\.?\s+\w+( \w+)?\? no$")


async def finish(disk: Path) -> list[str]:
    """Do to a copy what a mount does: replay the journal, delete what was open. Returns what hinders that."""
    status, lines = await _e2fsck(disk, "-p", "-E", "journal_only", writes=True)
    # 1: more was done than a mount would do, as for a journal that cannot be read
    return _findings(disk, status, lines) if status else []


async def look(disk: Path) -> list[str]:
    """Check without changing anything; returns what is wrong, a line each, at most 8 and one that says so."""
    status, lines = await _e2fsck(disk, "-f", "-n", writes=False)
    return [] if 0 <= status < _UNCORRECTED else _findings(disk, status, lines)


async def _e2fsck(disk: Path, *options: str, writes: bool) -> tuple[int, Sequence[str]]:
    done = await run_tool(["e2fsck", *options, disk], timeout=_CHECK_S, writes=writes)
    return done.status, done.lines


def _findings(disk: Path, status: int, lines: Iterable[str]) -> list[str]:
    plain = (line.removeprefix(f"{disk}: ").removeprefix(f"{disk.name}: ") for line in lines)
    found = [_ANSWER.sub("", line) for line in plain if line and not _IDLE.match(line)]
    if len(found) > LINES_MAX:
        found[LINES_MAX:] = ["and more of that kind"]
    return found or [f"e2fsck ended with status {status} and gave no reason"]
