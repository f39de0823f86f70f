"""ext4 filesystems in files, made and checked without mounting them."""

import os
import struct
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from banger.model.errors import Invalid
from banger.model.text import harmless
from banger.system.crc32c import crc32c
from banger.system.e2fsprogs import run_tool
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
    done = await run_tool(["e2fsck", "-f", "-n", image], timeout=_MAKE_S, writes=False)
    if done.status:
        error = done.failure()
        raise Invalid(f"the filesystem in {image.name} has errors", hint=error.hint, details=error.details) from error


async def discard_ext4(image: Path) -> None:
    """Make holes of the blocks that an unmounted, clean filesystem does not use. Raises `CommandFailed`, `Timeout`."""
    done = await run_tool(["e2fsck", "-f", "-p", "-E", "discard", image], timeout=_MAKE_S, writes=True)
    if done.status not in (0, 1):
        raise done.failure()


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


SUPERBLOCK_AT, SUPERBLOCK_BYTES = 1024, 1024
_MAGIC = 0xEF53
_VALID, _ERROR = 0x1, 0x2  # s_state
_RECOVER, _64BIT = 0x4, 0x80  # s_feature_incompat
_METADATA_CSUM, _ORPHAN_PRESENT = 0x400, 0x10000  # s_feature_ro_compat


class Damaged(Invalid):
    """A filesystem contradicts itself: e2fsck has work to do."""


class Unreadable(Invalid):
    """A filesystem has features, or sizes, that are not looked into."""


class Superblock(NamedTuple):
    """What a filesystem says of itself (the kernel's filesystems/ext4/super.rst).

    `clean`: it was unmounted, or its journal replayed to the end, and nothing is known to be wrong. Numbers of free
    blocks and inodes are exact only then. `check_due`: it asks for a check after so many mounts, or so much time
    (tune2fs(8), `-c` and `-i`).
    """

    bytes: int
    block_size: int
    clean: bool
    needs_recovery: bool
    has_errors: bool
    uuid: str
    label: str
    free_bytes: int
    free_inodes: int
    check_due: bool


def read_superblock(path: Path) -> Superblock:
    """The superblock of a filesystem in a file, read without any program. Raises `Invalid` when it is no ext4."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise Invalid(f"cannot open {path}: {error.strerror}") from error
    try:
        return parse_superblock(os.pread(fd, SUPERBLOCK_BYTES, SUPERBLOCK_AT), os.fstat(fd).st_size, str(path))
    except OSError as error:
        raise Invalid(f"cannot read {path}: {error.strerror}") from error
    finally:
        os.close(fd)


def parse_superblock(raw: bytes, file_bytes: int, name: str) -> Superblock:
    """Of the 1024 bytes of a superblock. Raises `Invalid`."""
    if len(raw) < SUPERBLOCK_BYTES or struct.unpack_from("<H", raw, 0x38)[0] != _MAGIC:
        raise Invalid(
            f"{name} holds no ext4 filesystem",
            hint=f"`dumpe2fs -h {name}` shows what there is; docs/repair.md says how to look for a spare superblock",
        )
    log_block, state = struct.unpack_from("<I", raw, 0x18)[0], struct.unpack_from("<H", raw, 0x3A)[0]
    incompat, ro_compat = struct.unpack_from("<II", raw, 0x60)
    block_size = 1024 << min(log_block, 16)
    size = _count(raw, 0x4, 0x150, incompat) * block_size
    # the kernel mounts neither, and no program but e2fsck should believe the rest
    damaged = (ro_compat & _METADATA_CSUM and crc32c(raw[:0x3FC]) != struct.unpack_from("<I", raw, 0x3FC)[0]) or (
        size > file_bytes
    )
    has_errors = bool(state & _ERROR or damaged)
    # files that were deleted while open are forgotten when the journal is replayed; some left without it to be
    # replayed mean that this was broken off
    orphans = struct.unpack_from("<I", raw, 0xE8)[0] or ro_compat & _ORPHAN_PRESENT
    needs_recovery = bool(incompat & _RECOVER)
    return Superblock(
        bytes=size,
        block_size=block_size,
        clean=bool(state & _VALID) and not (has_errors or needs_recovery or orphans),
        needs_recovery=needs_recovery,
        has_errors=has_errors,
        uuid="-".join(raw[0x68:0x78].hex()[a:b] for a, b in ((0, 8), (8, 12), (12, 16), (16, 20), (20, 32))),
        label=harmless(raw[0x78:0x88].partition(b"\0")[0].decode(errors="replace")),
        free_bytes=_count(raw, 0xC, 0x158, incompat) * block_size,
        free_inodes=struct.unpack_from("<I", raw, 0x10)[0],
        check_due=_check_due(raw),
    )


def _check_due(raw: bytes) -> bool:
    mounts, mounts_max = struct.unpack_from("<Hh", raw, 0x34)
    last, seconds_max = struct.unpack_from("<II", raw, 0x40)
    return bool(0 < mounts_max <= mounts or 0 < seconds_max <= abs(time.time() - last))


def _count(raw: bytes, low: int, high: int, incompat: int) -> int:
    upper = struct.unpack_from("<I", raw, high)[0] if incompat & _64BIT else 0
    return int(struct.unpack_from("<I", raw, low)[0] | upper << 32)
