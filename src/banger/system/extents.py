"""Which blocks of a file other files have as well (ioctl FS_IOC_FIEMAP; the kernel's filesystems/fiemap.rst)."""

import fcntl
import os
import struct
from pathlib import Path

from banger.model.capacity import Extent

_FIEMAP = 0xC020660B
_LAST, _UNKNOWN, _DELAYED, _SHARED = 0x1, 0x2, 0x4, 0x2000
_HEAD = struct.Struct("=QQLLLL")  # start, length, flags, mapped extents, room for extents, reserved
_EXTENT = struct.Struct("=QQQ16xL12x")  # logical, physical, length, flags
_AT_ONCE = 256
_EXTENTS_MAX = 1 << 16
_WHOLE = (1 << 64) - 1


def shared_extents(path: Path | str) -> tuple[Extent, ...]:
    """A file's shared extents; none where its filesystem shares nothing or cannot say, or the file is gone.

    A guest can break its disk into any number of extents: those after the first 65,536 are taken as its own.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return ()
    try:
        return _shared(descriptor)
    except OSError:
        return ()
    finally:
        os.close(descriptor)


def _shared(descriptor: int) -> tuple[Extent, ...]:
    buffer = bytearray(_HEAD.size + _AT_ONCE * _EXTENT.size)
    found: list[Extent] = []
    at = 0
    for _ in range(_EXTENTS_MAX // _AT_ONCE):
        _HEAD.pack_into(buffer, 0, at, _WHOLE - at, 0, 0, _AT_ONCE, 0)
        fcntl.ioctl(descriptor, _FIEMAP, buffer)
        mapped = _HEAD.unpack_from(buffer)[3]
        rows = list(_EXTENT.iter_unpack(memoryview(buffer)[_HEAD.size : _HEAD.size + mapped * _EXTENT.size]))
        found += [
            Extent(physical, length)
            for _, physical, length, flags in rows
            if flags & (_SHARED | _UNKNOWN | _DELAYED) == _SHARED
        ]
        if mapped < _AT_ONCE or rows[-1][3] & _LAST:
            break
        at = rows[-1][0] + rows[-1][2]
    return tuple(found)
