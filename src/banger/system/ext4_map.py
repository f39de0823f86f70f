"""Where the blocks of an ext4 inode lie: runs of logical block, physical block, count; holes are left out.

Both forms end: their depth is bounded, and so is how many blocks of the map are read.
"""

import struct
from collections.abc import Callable, Iterator

from banger.system.ext4 import Damaged

Run = tuple[int, int, int]
_NODES_MAX = 65536
_DEPTH_MAX = 5


def extents(root: bytes, block_size: int, read_block: Callable[[int], bytes]) -> Iterator[Run]:
    """Of a tree of extents whose root lies in the inode. What is allocated and not yet written reads as zeros."""
    return _Reading(block_size, read_block).extents(root, None)


def indirect(root: bytes, block_size: int, read_block: Callable[[int], bytes]) -> Iterator[Run]:
    """Of lists of blocks, and lists of lists, as ext2 and ext3 have them."""
    return _Reading(block_size, read_block).lists(root)


class _Reading:
    def __init__(self, block_size: int, read_block: Callable[[int], bytes]) -> None:
        self._numbers, self._read, self._nodes = block_size // 4, read_block, 0

    def _node(self, block: int) -> bytes:
        self._nodes += 1
        if self._nodes > _NODES_MAX:
            raise Damaged("an inode has too many blocks that say where its blocks are")
        return self._read(block)

    def extents(self, node: bytes, depth: int | None) -> Iterator[Run]:
        magic, count, most, level = struct.unpack_from("<HHHH", node)
        wrong = magic != 0xF30A or count > most or 12 + 12 * count > len(node) or level > _DEPTH_MAX
        if wrong or depth not in (None, level):
            raise Damaged("an inode's extents contradict themselves")
        for at in range(12, 12 + 12 * count, 12):
            if level:
                low, high = struct.unpack_from("<4xIH", node, at)
                yield from self.extents(self._node(low | high << 32), level - 1)
                continue
            logical, length, high, low = struct.unpack_from("<IHHI", node, at)
            if length <= 0x8000:
                yield logical, low | high << 32, length

    def lists(self, root: bytes) -> Iterator[Run]:
        numbers = struct.unpack("<15I", root)
        for at, number in enumerate(numbers[:12]):
            if number:
                yield at, number, 1
        at = 12
        for level, number in enumerate(numbers[12:], start=1):
            if number:
                yield from self._list(self._node(number), level, at)
            at += self._numbers**level

    def _list(self, node: bytes, level: int, at: int) -> Iterator[Run]:
        each = self._numbers ** (level - 1)
        for index, number in enumerate(struct.unpack(f"<{self._numbers}I", node)):
            if number and level == 1:
                yield at + index, number, 1
            elif number:
                yield from self._list(self._node(number), level - 1, at + index * each)
