"""What e2fsck says of a filesystem that nothing has mounted. Only here does `check` touch what a guest wrote."""

import re
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from banger.model.errors import Invalid
from banger.model.text import harmless
from banger.system.bounded import run_bounded
from banger.system.process import find_program

_CHECK_S = 1800.0
_SUPERBLOCK = 1024
_MAGIC = 0xEF53
_ERRORS = 1 << 1
_RECOVER, _ORPHANS = 1 << 2, 1 << 16
_UNCORRECTED = 4  # and above: it did not get to the end
LINES_MAX = 8
# what is no finding: titles, sums, answers, and what a mount does as well
_IDLE = re.compile(
    r"Pass \d|e2fsck \d|.*: \d+/\d+ files |.*\*{5}|\w+( \w+)?\? (no|yes)$|recovering journal$|Clearing orphaned "
)
_ANSWER = re.compile(r"\.?\s+\w+( \w+)?\? no$")


class Superblock(NamedTuple):
    """`unfinished`: a journal to replay, or files that were deleted while they were open; a mount finishes both.

    `noted` that the guest's kernel met errors.
    """

    unfinished: bool
    noted: bool


def read_superblock(disk: Path) -> Superblock:
    """Raises `Invalid` for what is no ext4."""
    with disk.open("rb") as file:
        file.seek(_SUPERBLOCK)
        block = file.read(1024)
    if len(block) < 1024 or struct.unpack_from("<H", block, 0x38)[0] != _MAGIC:
        raise Invalid("it holds no ext4 filesystem")
    (state,) = struct.unpack_from("<H", block, 0x3A)
    incompatible, read_only = struct.unpack_from("<II", block, 0x60)
    (orphan,) = struct.unpack_from("<I", block, 0xE8)
    return Superblock(bool(incompatible & _RECOVER or orphan or read_only & _ORPHANS), bool(state & _ERRORS))


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
    """Its status and what it said. The one call: what confines the program belongs here."""
    del writes  # whoever runs it now may write to what we may
    argv = [find_program("e2fsck", package="e2fsprogs"), *options, str(disk)]
    done = await run_bounded(argv, timeout=_CHECK_S)
    text = (done.stdout + b"\n" + done.stderr).decode(errors="replace")
    return done.status, [harmless(line.strip()) for line in text.splitlines()]


def _findings(disk: Path, status: int, lines: Iterable[str]) -> list[str]:
    plain = (line.removeprefix(f"{disk}: ").removeprefix(f"{disk.name}: ") for line in lines)
    found = [_ANSWER.sub("", line) for line in plain if line and not _IDLE.match(line)]
    if len(found) > LINES_MAX:
        found[LINES_MAX:] = ["and more of that kind"]
    return found or [f"e2fsck ended with status {status} and gave no reason"]
