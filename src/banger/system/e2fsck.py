"""e2fsck, in the ways in which a work disk needs it."""

from pathlib import Path

from banger.model.errors import Invalid
from banger.system.e2fsprogs import Ended, run_tool
from banger.system.ext4 import read_superblock

# of a disk that a guest has filled with a million files, on a slow host
_FULL_S = 3600.0
_REPLAY_S = 300.0


async def replay_journal(disk: Path, undo: Path) -> bool:
    """Write what the journal holds to its place, as the guest's kernel would do, and bring the counts up to date.

    True leaves the file `undo`, with which `undo_replay` takes it back. False, and nothing has changed, where the
    journal cannot be replayed to its end, or e2fsck finds more to do. Killed midway, a replay can be done again.
    """
    undo.touch(mode=0o600, exist_ok=False)
    for words in (["-E", "journal_only"], []):
        done = await run_tool(["e2fsck", "-z", undo, "-p", *words, disk], timeout=_REPLAY_S, writes=True)
        if done.status or not _is_in_order(disk):
            await undo_replay(disk, undo)
            undo.unlink()
            return False
    return True


def _is_in_order(disk: Path) -> bool:
    try:
        superblock = read_superblock(disk)
    except Invalid:
        return False
    return superblock.clean and not superblock.check_due


async def undo_replay(disk: Path, undo: Path) -> None:
    """Take back what e2fsck wrote; nothing where it was killed, or the disk has changed since."""
    await run_tool(["e2undo", undo, disk], timeout=_REPLAY_S, writes=True)


async def check_and_mend(disk: Path, *, trusted: bool = False) -> Ended:
    """A full check that mends what loses nothing; with `trusted`, all that it finds. Statuses 0 and 1 are good."""
    return await run_tool(["e2fsck", "-f", "-y" if trusted else "-p", disk], timeout=_FULL_S, writes=True)
