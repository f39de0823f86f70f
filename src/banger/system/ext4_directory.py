"""Writing the names of an ext4 directory anew, as a plain list: what debugfs cannot do for every name, nor for many.

Only for copies of filesystems that e2fsck has found whole, and that it sees again afterwards: it mends the counts of
links and the `..` of directories that were moved, and makes an index where there are many names.
"""

import os
import struct
from collections.abc import Sequence
from pathlib import Path

from banger.model.errors import Invalid
from banger.system.crc32c import crc32c
from banger.system.ext4_reader import Entry, Ext4, Inode

_TAIL = struct.Struct("<IHBBI")  # a name of no inode, 12 bytes, of the kind 0xDE, and a checksum
_NAME_MAX = 255


def pack(entries: Sequence[Entry], block_size: int, *, checksums: bool) -> list[bytes]:
    """The entries in blocks, each with room for a tail where there are checksums; `.` and `..` must be first. Pure."""
    room = block_size - (_TAIL.size if checksums else 0)
    blocks: list[list[bytes]] = [[]]
    used = 0
    for entry in entries:
        assert 0 < len(entry.name) <= _NAME_MAX
        length = 8 + -(-len(entry.name) // 4) * 4
        if used + length > room:
            blocks.append([])
            used = 0
        head = struct.pack("<IHBB", entry.inode, length, len(entry.name), entry.kind)
        blocks[-1].append((head + entry.name).ljust(length, b"\0"))
        used += length
    return [_filled(rows, room) for rows in blocks]


def _filled(rows: list[bytes], room: int) -> bytes:
    """The last entry, or one of no name, reaches to the end."""
    rows = rows or [bytes(8)]
    rest = room - sum(len(row) for row in rows[:-1])
    last = rows[-1][:4] + struct.pack("<H", rest) + rows[-1][6:]
    return b"".join(rows[:-1]) + last.ljust(rest, b"\0")


def blocks_needed(filesystem: Ext4, entries: Sequence[Entry]) -> int:
    return len(pack(entries, filesystem.block_size, checksums=filesystem.has_checksums))


def write_directory(disk: Path, number: int, entries: Sequence[Entry]) -> None:
    """Give a directory these entries and no other; it has blocks enough, and no index. Raises `Invalid`, `OSError`."""
    with Ext4(disk) as filesystem:
        directory = filesystem.inode(number)
        places = [physical for _, physical in filesystem.blocks(directory)]
        packed = pack(entries, filesystem.block_size, checksums=filesystem.has_checksums)
        if len(packed) > len(places):
            raise Invalid(f"directory {number} has {len(places)} blocks and needs {len(packed)}")
        packed += pack([], filesystem.block_size, checksums=filesystem.has_checksums) * (len(places) - len(packed))
        sealed = [_sealed(block, filesystem, directory) for block in packed]
    fd = os.open(disk, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        for place, block in zip(places, sealed, strict=True):
            if os.pwrite(fd, block, place * len(block)) != len(block):
                raise Invalid(f"{disk} could not be written")
    finally:
        os.close(fd)


def _sealed(block: bytes, filesystem: Ext4, directory: Inode) -> bytes:
    if not filesystem.has_checksums:
        return block
    return block + _TAIL.pack(0, _TAIL.size, 0, 0xDE, crc32c(block, filesystem.checksum_seed(directory)))
