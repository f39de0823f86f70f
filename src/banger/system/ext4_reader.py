"""Looking into an ext4 filesystem in a file, without mounting it and without a program.

The filesystem may have been written by a hostile guest: all that is read is checked and bounded. The layout is that of
the kernel's filesystems/ext4 documentation. Nothing may change the file meanwhile, and its journal must be empty.
"""

import os
import stat
import struct
from collections.abc import Collection, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from banger.system.crc32c import START, crc32c
from banger.system.ext4 import SUPERBLOCK_AT, SUPERBLOCK_BYTES, Damaged, Unreadable, parse_superblock
from banger.system.ext4_map import extents, indirect

ROOT_INODE = 2
INDEX, ENCRYPTED, CASEFOLDED = 0x1000, 0x800, 0x40000000  # inode flags
_EXTENTS, _INLINE = 0x80000, 0x10000000
_META_BG, _CSUM_SEED = 0x10, 0x2000
# filetype, recover, meta_bg, extents, 64bit, mmp, flex_bg, ea_inode, csum_seed, largedir, inline_data, encrypt, and
# casefold
_READABLE = 0x2 | 0x4 | 0x10 | 0x40 | 0x80 | 0x100 | 0x200 | 0x400 | 0x2000 | 0x4000 | 0x8000 | 0x10000 | 0x20000
_METADATA_CSUM = 0x400
_SPARSE_SUPER, _SPARSE_SUPER2 = 0x1, 0x200
_MAX_BLOCK = 32 * 1024
DIRECTORY_MAX = 32 * 1024 * 1024  # a million names, which take a second


class Inode(NamedTuple):
    number: int
    mode: int
    uid: int
    gid: int
    links: int
    size: int
    flags: int
    generation: int
    map: bytes  # i_block: 60 bytes

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.mode)

    @property
    def is_file(self) -> bool:
        return stat.S_ISREG(self.mode)


class Entry(NamedTuple):
    """A name in a directory; the kind is the format's number of the file type, 0 where it keeps none."""

    name: bytes
    inode: int
    kind: int


class Ext4:
    """An open filesystem. Raises `Invalid` when it is none, `Damaged`, `Unreadable`, `OSError`."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        with ExitStack() as on_failure:
            on_failure.callback(os.close, self._fd)
            self._raw = os.pread(self._fd, SUPERBLOCK_BYTES, SUPERBLOCK_AT)
            self.superblock = parse_superblock(self._raw, os.fstat(self._fd).st_size, str(path))
            self._read_geometry()
            on_failure.pop_all()

    def __enter__(self) -> "Ext4":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        os.close(self._fd)

    def _read_geometry(self) -> None:
        self.block_size = self.superblock.block_size
        self._blocks = self.superblock.bytes // self.block_size
        self._inodes, self._first_block = self._u32(0x0), self._u32(0x14)
        self._blocks_per_group, self._inodes_per_group = self._u32(0x20), self._u32(0x28)
        self._compat, self._incompat, self._ro_compat = (self._u32(at) for at in (0x5C, 0x60, 0x64))
        self._inode_size = self._u16(0x58) if self._u32(0x4C) else 128
        self._descriptor_size = max(32, self._u16(0xFE)) if self._incompat & 0x80 else 32
        if self._incompat & ~_READABLE or self.block_size > _MAX_BLOCK:
            raise Unreadable(f"its features ({self._incompat:#x}, blocks of {self.block_size}) are not looked into")
        sizes = (self._inode_size, self._descriptor_size)
        if not self._blocks_per_group or not self._inodes_per_group or any(s & (s - 1) for s in sizes):
            raise Damaged("the superblock contradicts itself")
        if not 128 <= self._inode_size <= self.block_size or self._descriptor_size > self.block_size:
            raise Damaged("the superblock contradicts itself")

    def _u16(self, at: int) -> int:
        return int.from_bytes(self._raw[at : at + 2], "little")

    def _u32(self, at: int) -> int:
        return int.from_bytes(self._raw[at : at + 4], "little")

    @property
    def has_checksums(self) -> bool:
        return bool(self._ro_compat & _METADATA_CSUM)

    def checksum_seed(self, inode: Inode) -> int:
        """What the checksums of an inode's metadata begin with."""
        seed = self._u32(0x270) if self._incompat & _CSUM_SEED else crc32c(self._raw[0x68:0x78], START)
        return crc32c(struct.pack("<II", inode.number, inode.generation), seed)

    def read_block(self, block: int, count: int = 1) -> bytes:
        if not self._first_block <= block <= self._blocks - count:
            raise Damaged(f"block {block} is outside of the filesystem")
        data = os.pread(self._fd, count * self.block_size, block * self.block_size)
        if len(data) != count * self.block_size:
            raise Damaged(f"block {block} is behind the file's end")
        return data

    def inode(self, number: int) -> Inode:
        if not 1 <= number <= self._inodes:
            raise Damaged(f"inode {number} is outside of the filesystem")
        group, index = divmod(number - 1, self._inodes_per_group)
        block, offset = divmod(index * self._inode_size, self.block_size)
        raw = self.read_block(self._inode_table(group) + block)[offset : offset + self._inode_size]
        mode, uid, size, gid, links = struct.unpack_from("<HHI16xHH", raw)
        uid_high, gid_high = struct.unpack_from("<HH", raw, 120)
        generation, size_high = struct.unpack_from("<I4xI", raw, 100)
        return Inode(
            number=number,
            mode=mode,
            uid=uid | uid_high << 16,
            gid=gid | gid_high << 16,
            links=links,
            size=size | size_high << 32,
            flags=struct.unpack_from("<I", raw, 32)[0],
            generation=generation,
            map=raw[40:100],
        )

    def _inode_table(self, group: int) -> int:
        per_block = self.block_size // self._descriptor_size
        meta_group, index = divmod(group, per_block)
        if self._incompat & _META_BG and meta_group >= self._u32(0x104):
            first = meta_group * per_block
            block = first * self._blocks_per_group + self._first_block + self._has_superblock(first)
            block += not first and not self._first_block and self.block_size == 1024
        else:
            block = SUPERBLOCK_AT // self.block_size + 1 + meta_group
        raw = self.read_block(block)[index * self._descriptor_size :]
        high = struct.unpack_from("<I", raw, 0x28)[0] if self._descriptor_size >= 64 else 0
        return int(struct.unpack_from("<I", raw, 0x8)[0] | high << 32)

    def _has_superblock(self, group: int) -> bool:
        if group == 0 or not (self._ro_compat & _SPARSE_SUPER or self._compat & _SPARSE_SUPER2):
            return True
        if self._compat & _SPARSE_SUPER2:
            return group in (self._u32(0x24C), self._u32(0x250))
        return group == 1 or any(base ** _log(group, base) == group for base in (3, 5, 7))

    def blocks(self, inode: Inode) -> Iterator[tuple[int, int]]:
        """Logical and physical number of each block of an inode that has one, in order; holes are left out."""
        if inode.flags & _INLINE:
            raise Unreadable("data that lies in inodes is not looked into")
        end = -(-inode.size // self.block_size)
        last = -1
        for logical, physical, count in (extents if inode.flags & _EXTENTS else indirect)(
            inode.map, self.block_size, self.read_block
        ):
            if logical <= last or not count:
                raise Damaged(f"the blocks of inode {inode.number} are not in order")
            last = logical + count - 1
            for index in range(min(count, end - logical)):
                yield logical + index, physical + index
            if last >= end:
                return

    def read(self, inode: Inode, limit: int) -> bytes:
        """At most `limit` bytes of a file; holes read as zeros."""
        size = min(inode.size, limit)
        data = bytearray(size)
        for logical, physical in self.blocks(inode):
            at = logical * self.block_size
            if at >= size:
                break
            data[at : at + self.block_size] = self.read_block(physical)[: size - at]
        return bytes(data)

    def entries(self, directory: Inode, wanted: Collection[bytes] = ()) -> Iterator[Entry]:
        """The names in a directory, `.` and `..` too; blocks without any of the wanted ones are passed over."""
        if not directory.is_directory:
            raise Damaged(f"inode {directory.number} is no directory")
        if directory.size > DIRECTORY_MAX:
            raise Unreadable(f"a directory of {directory.size} bytes is not looked into")
        for _, physical in self.blocks(directory):
            data = self.read_block(physical)
            if not wanted or any(name in data for name in wanted):
                yield from self._parse(data, directory.number)

    def _parse(self, data: bytes, number: int) -> Iterator[Entry]:
        at = 0
        while at < self.block_size:
            if at + 8 > self.block_size:
                raise Damaged(f"directory {number} contradicts itself")
            inode, length, name_length, kind = struct.unpack_from("<IHBB", data, at)
            if length < 8 or length % 4 or at + length > self.block_size or 8 + name_length > length:
                raise Damaged(f"directory {number} contradicts itself")
            if inode:
                name = data[at + 8 : at + 8 + name_length]
                if not name or b"/" in name or b"\0" in name:
                    raise Damaged(f"directory {number} has an impossible name")
                yield Entry(name, inode, kind if self._incompat & 0x2 else 0)
            at += length

    def find(self, directory: Inode, wanted: Collection[bytes]) -> dict[bytes, Inode]:
        """Those of the wanted names that a directory has."""
        found = {entry.name: entry.inode for entry in self.entries(directory, wanted) if entry.name in wanted}
        return {name: self._used(number) for name, number in found.items()}

    def _used(self, number: int) -> Inode:
        inode = self.inode(number)
        if not inode.links or not inode.mode:
            raise Damaged(f"inode {number} has a name and is not in use")
        return inode


def _log(number: int, base: int) -> int:
    """How often a base goes into a number."""
    power = 0
    while number >= base:
        number, power = number // base, power + 1
    return power
