"""Work seeds: the small filesystem in an image that new work disks are cloned from, with root's home in it."""

import os
import stat
from pathlib import Path
from typing import NamedTuple

from banger.images.homes import Room, copied_home, put_key
from banger.model.home import HOME_MODE, SHELL_FILES, WORK_LABEL
from banger.model.keys import PublicKey
from banger.system.ext4 import GROWABLE, make_ext4
from banger.system.files import in_thread, write_new
from banger.system.process import failure, find_program, run

SEED_BYTES = 64 * 1024 * 1024  # the smallest, and what larger ones are a multiple of
_SPARE_BYTES = 32 * 1024 * 1024  # for the journal, and so that a work disk of this size can be lived in
_BLOCK = 4096
_INODE_RATIO = 16384  # GROWABLE gives a filesystem one inode for so many bytes
_ROOT_INODE, _FIRST_INODE = 2, 11  # ext4: the root's, and the first that is free in a new filesystem
_DEBUGFS_S = 600.0


class Measured(NamedTuple):
    """What a tree holds: the size in bytes of a seed for it, and its inodes, its root not counted."""

    seed_bytes: int
    inodes: int


async def make_work_seed(home: Path, target: Path) -> None:
    """Create `target` from the directory `home`, which gets the shell files that it lacks; as large as it needs to be.

    All in it is root's, whoever owns `home`. Raises `CommandFailed` like `make_ext4`.
    """
    for file in SHELL_FILES:
        if not os.path.lexists(home / file.path):
            write_new(home / file.path, file.content, file.mode)
    measured = await in_thread(measure, home)
    await make_ext4(target, measured.seed_bytes, label=WORK_LABEL, tree=home, options=GROWABLE)
    await _give_to_root(target, measured.inodes)


async def remake_work_seed(
    filesystem: Path, inside: str, target: Path, room: Room, *, key: PublicKey, old: str
) -> None:
    """Create `target` from the home that is `inside` a filesystem, letting `key` in. See `copied_home`, `put_key`."""
    async with copied_home(filesystem, inside, target.parent, room) as home:
        await in_thread(put_key, home, key, old)
        await make_work_seed(home, target)


def measure(home: Path) -> Measured:
    """How much a tree holds."""
    content, inodes = 0, set()
    for directory, inner, names in os.walk(home):
        for name in (*inner, *names):
            found = Path(directory, name).lstat()
            content += -(-found.st_size // _BLOCK) * _BLOCK
            inodes.add((found.st_dev, found.st_ino))
    # three tenths on top are for directories, indexes and extents
    needed = max(content + content * 3 // 10, len(inodes) * _INODE_RATIO) + _SPARE_BYTES
    return Measured(-(-needed // SEED_BYTES) * SEED_BYTES, len(inodes))


async def _give_to_root(image: Path, inodes: int) -> None:
    """mke2fs copies the tree's owners, who are ours when we are not root, and not the mode of its top."""
    commands = [f"sif <{_ROOT_INODE}> mode 0{stat.S_IFDIR | HOME_MODE:o}"]
    # of a new filesystem, inodes are given out in order; lost+found has the first
    for inode in (_ROOT_INODE, *range(_FIRST_INODE, _FIRST_INODE + inodes + 1)):
        commands += [f"sif <{inode}> uid 0", f"sif <{inode}> gid 0"]
    argv = [find_program("debugfs", package="e2fsprogs"), "-w", "-f", "-", str(image)]
    done = await run(argv, timeout=_DEBUGFS_S, input="\n".join([*commands, ""]).encode())
    # it succeeds whatever becomes of a command; the first line tells its version
    if complaints := done.stderr.strip().splitlines()[1:]:
        raise failure(argv, done.status, b"\n".join(complaints))
