"""From a tree to a root filesystem: how large it must be, and the kernel's modules in it."""

import os
import re
import stat
from pathlib import Path
from typing import NamedTuple

from banger.images.oci_tree import Tree
from banger.images.unmounted_tree import Room, copied_directory
from banger.model.errors import Invalid, NotFound
from banger.model.image import Image
from banger.model.sizes import GIB, MIB, show_size
from banger.system.ext4 import make_ext4
from banger.system.files import in_thread

ROOT_BYTES = 4 * GIB
MAX_DEPTH = 200
_SPARE = 512 * MIB  # for the journal, and so that a machine can be lived in
_BLOCK = 4096
_INODE_RATIO = 16384  # mke2fs gives a filesystem one inode for so many bytes
_RELEASE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+~-]{0,99}")
_MODULES = ("/usr/lib/modules", "/lib/modules")


class Measured(NamedTuple):
    """What a tree takes on a disk, in bytes and inodes."""

    bytes: int
    inodes: int

    @property
    def least(self) -> int:
        """The size of a filesystem for it, in whole MiB."""
        needed = max(self.bytes + self.bytes // 8, self.inodes * _INODE_RATIO * 9 // 8) + _SPARE
        return -(-needed // MIB) * MIB


def measure(root: Path) -> Measured:
    """Raises `Invalid` for directories too deep in each other, and for what may not be in a tree: device nodes."""
    count = content = 0
    left = [(root, 0)]
    while left:
        directory, depth = left.pop()
        if depth > MAX_DEPTH:
            raise Invalid(f"the image has more than {MAX_DEPTH} directories in each other")
        content += _BLOCK
        for entry in directory.iterdir():
            found = entry.lstat()
            count += 1
            content += -(-found.st_size // _BLOCK) * _BLOCK
            if stat.S_ISDIR(found.st_mode):
                left.append((entry, depth + 1))
            elif stat.S_ISBLK(found.st_mode) or stat.S_ISCHR(found.st_mode):
                raise Invalid(f"there is a device node in the tree: {entry.name!r}")
    return Measured(content, count)


def root_bytes(measured: Measured, wanted: int | None) -> int:
    """The size of the root: as wanted, else 4 GiB or as many GiB as are needed. Raises `Invalid`: it would not fit."""
    if wanted is None:
        return max(ROOT_BYTES, -(-measured.least // GIB) * GIB)
    if wanted < measured.least:
        raise Invalid(
            f"the image does not fit in {show_size(wanted)}", hint=f"give --size {-(-measured.least // MIB)}M or more"
        )
    return -(-wanted // MIB) * MIB


async def make_root(tree: Tree, target: Path, wanted: int | None, room: Room) -> None:
    """Make the filesystem. Raises `Invalid`, `CommandFailed`, and what `room` raises."""
    measured = await in_thread(measure, tree.root)
    with room(measured.bytes):
        await make_ext4(target, root_bytes(measured, wanted), label="banger-root", tree=tree.root)


async def take_modules(image: Image, filesystem: Path, tree: Tree, beside: Path, room: Room) -> None:
    """Copy the modules of an image's kernel out of its root into the tree.

    Raises `Invalid`, and as `copied_directory`.
    """
    release = image.kernel_release
    if not _RELEASE.fullmatch(release):
        raise Invalid(f"the image {image.name} names a kernel {release!r}", hint="choose another with --kernel-from")
    for directory in _MODULES:
        try:
            async with copied_directory(filesystem, f"{directory}/{release}", beside, room) as copy:
                await in_thread(_put, copy, tree, f"/lib/modules/{release}")
            return
        except NotFound:
            continue
    raise Invalid(
        f"there are no modules of the kernel {release} in the image {image.name}",
        hint="choose another image with --kernel-from",
    )


def _put(copy: Path, tree: Tree, path: str) -> None:
    """Move the copy to its place, as root's, with plain files and directories only."""
    left = [copy]
    while left:
        directory = left.pop()
        os.chown(directory, 0, 0)
        directory.chmod(0o755)
        for entry in list(directory.iterdir()):
            if entry.is_symlink() or not (entry.is_dir() or entry.is_file()):
                entry.unlink()  # `build` and `source` lead to what is not there
            elif entry.is_dir():
                left.append(entry)
            else:
                os.chown(entry, 0, 0)
                entry.chmod(0o644)
    tree.move_in(copy, path)
