"""Looking up files in an image's root, without mounting it: paths are followed as its guest would follow them."""

import stat
from pathlib import Path
from types import TracebackType

from banger.model.errors import Invalid
from banger.system.ext4_reader import ROOT_INODE, Ext4, Inode

_MAX_LINKS = 40
_MAX_TARGET = 4096
_IN_INODE = 60  # bytes of a link's target that lie where others have their map
_EXTENTS = 0x80000


class RootTree:
    """An open root filesystem, which nothing else may write. Raises as `Ext4`."""

    def __init__(self, path: Path) -> None:
        self._name = path.name
        self._ext4 = Ext4(path)

    def __enter__(self) -> "RootTree":
        self._ext4.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._ext4.__exit__(kind, error, at)

    def find(self, path: str) -> Inode | None:
        """What an absolute path leads to; None when that is not there."""
        todo = [part.encode() for part in reversed(path.split("/")) if part not in ("", ".")]
        way, links = [self._ext4.inode(ROOT_INODE)], 0
        while todo:
            part = todo.pop()
            if part == b"..":
                way = way[:-1] or way
                continue
            if not way[-1].is_directory:
                return None
            if (inode := self._ext4.find(way[-1], (part,)).get(part)) is None:
                return None
            if not stat.S_ISLNK(inode.mode):
                way.append(inode)
                continue
            links += 1
            target = self._target(inode)
            if links > _MAX_LINKS or len(todo) > _MAX_TARGET:
                return None
            way = way[:1] if target.startswith(b"/") else way
            todo += [piece for piece in reversed(target.split(b"/")) if piece not in (b"", b".")]
        return way[-1]

    def _target(self, link: Inode) -> bytes:
        if link.size < _IN_INODE and not link.flags & _EXTENTS:
            return link.map[: link.size]
        return self._ext4.read(link, _MAX_TARGET)

    def has(self, path: str) -> bool:
        return self.find(path) is not None

    def read(self, path: str, limit: int) -> bytes | None:
        """The content of a file; None when there is no file. Raises `Invalid` when it is larger than `limit` bytes."""
        inode = self.find(path)
        if inode is None or not inode.is_file:
            return None
        if inode.size > limit:
            raise Invalid(f"{path} in {self._name} has {inode.size} bytes, more than the {limit} that are read of it")
        return self._ext4.read(inode, limit)
