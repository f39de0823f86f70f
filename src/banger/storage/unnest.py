"""A home that was copied one level too deep, `/root/root`, moved to where it belongs.

Nothing is copied: the names move from one directory to the other, so contents, links, owners, times and attributes
stay as they are. All names do, whatever bytes they have.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from banger.model.errors import Invalid
from banger.storage.findings import dated
from banger.system.debugfs import Command, edit
from banger.system.e2fsck import check_and_mend
from banger.system.ext4_directory import blocks_needed, write_directory
from banger.system.ext4_reader import INDEX, ROOT_INODE, Entry, Ext4
from banger.system.files import in_thread

_DOTS = (b".", b"..")
_OUTER = b"root"
_MADE_BY_E2FSCK = b"lost+found"


class Moved(NamedTuple):
    """The directory as it shall be: `.` and `..` first. `kept` are the new names of what had a name that was taken."""

    entries: tuple[Entry, ...]
    moved: int
    kept: tuple[bytes, ...]


def merge(top: Sequence[Entry], nested: Sequence[Entry], today: str) -> Moved:
    """Move all that is in the directory `root` of the top to the top; the directory itself goes. Pure."""
    dots = sorted((entry for entry in top if entry.name in _DOTS), key=lambda entry: len(entry.name))
    stay = [entry for entry in top if entry.name not in (*_DOTS, _OUTER)]
    come = [entry for entry in nested if entry.name not in _DOTS]
    here = {entry.name for entry in stay}
    taken = here | {entry.name for entry in come}
    kept = []
    for index, entry in enumerate(come):
        if entry.name in here:
            kept.append(dated(entry.name, "nested", today, taken))
            taken.add(kept[-1])
            come[index] = entry._replace(name=kept[-1])
    return Moved((*dots, *stay, *come), len(come), tuple(kept))


def blocks_to_add(disk: Path, nested: int, today: str) -> int:
    """How many blocks the top directory lacks for what comes to it. Raises `Invalid`, `OSError`."""
    with Ext4(disk) as filesystem:
        return _blocks_to_add(filesystem, _plan(filesystem, nested, today))


def _plan(filesystem: Ext4, nested: int, today: str) -> Moved:
    top, below = (list(filesystem.entries(filesystem.inode(number))) for number in (ROOT_INODE, nested))
    return merge(top, below, today)


def _blocks_to_add(filesystem: Ext4, plan: Moved) -> int:
    there = sum(1 for _ in filesystem.blocks(filesystem.inode(ROOT_INODE)))
    return max(0, blocks_needed(filesystem, plan.entries) - there)


async def unnest(disk: Path, nested: int, today: str) -> Moved:
    """Do it to a copy that e2fsck has found whole, and check it. Raises `Invalid`, `CommandFailed`, `Timeout`."""

    def prepare() -> tuple[Moved, list[Command]]:
        with Ext4(disk) as filesystem:
            plan = _plan(filesystem, nested, today)
            # an index would have to be kept right; e2fsck makes one again
            flags = filesystem.inode(ROOT_INODE).flags & ~INDEX
            grow = [("expand_dir", f"<{ROOT_INODE}>")] * _blocks_to_add(filesystem, plan)
        return plan, [("sif", f"<{ROOT_INODE}>", "flags", f"{flags:#x}"), *grow, ("clri", f"<{nested}>")]

    plan, commands = await in_thread(prepare)
    await edit(disk, commands)
    await in_thread(write_directory, disk, ROOT_INODE, plan.entries)
    done = await check_and_mend(disk, trusted=True)
    if done.status not in (0, 1):
        raise done.failure()
    await in_thread(_verify, disk, plan)
    return plan


def _verify(disk: Path, plan: Moved) -> None:
    wanted = {entry.name: entry.inode for entry in plan.entries}
    with Ext4(disk) as filesystem:
        found = {entry.name: entry.inode for entry in filesystem.entries(filesystem.inode(ROOT_INODE))}
    if _MADE_BY_E2FSCK not in wanted:
        found.pop(_MADE_BY_E2FSCK, None)
    if found != wanted:
        raise Invalid("moving what lies in /root/root did not succeed")
