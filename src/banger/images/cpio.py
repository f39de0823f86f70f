"""A deterministic writer of the newc cpio format (Documentation/driver-api/early-userspace/buffer-format.rst)."""

import stat

_TRAILER = "TRAILER!!!"
BLOCK = 512


class Cpio:
    """An archive under construction. Owners are root, times are 0; the order of entries is the caller's."""

    def __init__(self) -> None:
        self._out = bytearray()
        self._inode = 0

    def directory(self, name: str, mode: int = 0o755) -> None:
        self._entry(name, stat.S_IFDIR | mode, b"")

    def file(self, name: str, content: bytes, mode: int = 0o644) -> None:
        self._entry(name, stat.S_IFREG | mode, content)

    def symlink(self, name: str, target: str) -> None:
        self._entry(name, stat.S_IFLNK | 0o777, target.encode())

    def character_device(self, name: str, major: int, minor: int, mode: int = 0o600) -> None:
        self._entry(name, stat.S_IFCHR | mode, b"", device=(major, minor))

    def finish(self) -> bytes:
        """The archive, padded to 512 bytes."""
        self._entry(_TRAILER, 0, b"")
        self._out += bytes(-len(self._out) % BLOCK)
        return bytes(self._out)

    def _entry(self, name: str, mode: int, content: bytes, device: tuple[int, int] = (0, 0)) -> None:
        raw = name.encode() + b"\0"
        self._inode += 1
        inode = 0 if name == _TRAILER else self._inode
        links = 2 if stat.S_ISDIR(mode) else 1
        fields = (inode, mode, 0, 0, links, 0, len(content), 0, 0, *device, len(raw), 0)
        self._out += b"070701" + b"".join(b"%08X" % field for field in fields) + raw
        self._out += bytes(-len(self._out) % 4)
        self._out += content
        self._out += bytes(-len(self._out) % 4)
