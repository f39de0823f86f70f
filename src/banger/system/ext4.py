"""ext4 filesystems in files, made and checked without mounting them."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from banger.model.errors import CommandFailed, Invalid
from banger.system.process import find_program, run

MIB = 1024 * 1024
MIN_BYTES = 16 * MIB
_MAKE_S = 600.0
# A fresh sparse file reads as zeros: told so (e2fsprogs 1.47), mke2fs writes neither inode tables nor journal,
# and the guest has no reason to either (ext4lazyinit would fill every overlay). No blocks are kept for root.
_LAYOUT = ["-m", "0", "-E", "assume_storage_prezeroed=1,nodiscard", "-J", "size=32"]
# What is small when it is made and grows later: the same blocks and inodes as a large one, and a checksum seed of its
# own, so that a clone can be given another UUID.
GROWABLE = ("-b", "4096", "-I", "256", "-i", "16384", "-J", "size=16", "-O", "metadata_csum_seed")


async def make_ext4(
    target: Path, size: int, *, label: str, tree: Path | None = None, options: Sequence[str] = ()
) -> None:
    """Create `target`, a sparse file of `size` bytes that holds an ext4 with a random UUID, filled from `tree`.

    Raises `CommandFailed` when the tree does not fit, `Invalid` for a size below 16 MiB.
    """
    if size < MIN_BYTES or size % 4096:
        raise Invalid(f"a filesystem of {size} bytes is not possible", hint="use whole MiB, 16 or more")
    with target.open("xb") as file:
        file.truncate(size)
    argv = [find_program("mke2fs", package="e2fsprogs"), "-q", "-F", "-t", "ext4", "-U", "random", "-L", label]
    argv += [*(_LAYOUT if size >= 256 * MIB and not options else _LAYOUT[:-2]), *options]
    argv += ["-d", str(tree)] if tree is not None else []
    await run([*argv, str(target)], timeout=_MAKE_S)


async def check_ext4(image: Path) -> None:
    """Check an unmounted filesystem without changing it. Raises `Invalid` when it has errors."""
    argv = [find_program("e2fsck", package="e2fsprogs"), "-f", "-n", str(image)]
    try:
        await run(argv, timeout=_MAKE_S)
    except CommandFailed as error:
        raise Invalid(f"the filesystem in {image.name} has errors", hint=error.hint, details=error.details) from error


async def grow_ext4(image: Path, size: int) -> None:
    """Make an unmounted, clean filesystem and its file `size` bytes large. Not safe from a crash: for fresh files only.

    Raises `CommandFailed`; `Invalid` when it would shrink.
    """
    if size < image.stat().st_size:
        raise Invalid(f"{image.name} cannot be made smaller", hint=f"use at least {image.stat().st_size} bytes")
    os.truncate(image, size)
    # -f: the file comes from mke2fs and was never mounted, so nothing is to be checked first
    await run([find_program("resize2fs", package="e2fsprogs"), "-f", str(image)], timeout=_MAKE_S)


async def renew_uuid(image: Path) -> None:
    """Give an unmounted filesystem another, random UUID. Raises `CommandFailed`."""
    await run([find_program("tune2fs", package="e2fsprogs"), "-f", "-U", "random", str(image)], timeout=_MAKE_S)


class Superblock(NamedTuple):
    """What an ext4 says of itself; see the kernel's filesystems/ext4/super.rst."""

    bytes: int


def read_superblock(image: Path) -> Superblock:
    """Raises `Invalid` when there is no ext4."""
    with image.open("rb") as file:
        file.seek(1024)
        block = file.read(1024)
    if len(block) < 1024 or block[0x38:0x3A] != b"\x53\xef":
        raise Invalid(f"{image} holds no ext4 filesystem")
    (low, shift, high) = (int.from_bytes(block[at : at + 4], "little") for at in (0x4, 0x18, 0x150))
    return Superblock((low | high << 32) * (1024 << shift))
