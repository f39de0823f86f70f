"""Loop devices: files as block devices (loop(4); Linux, include/uapi/linux/loop.h)."""

import contextlib
import errno
import fcntl
import os
import struct
from collections.abc import Iterator
from pathlib import Path

_CONTROL = Path("/dev/loop-control")
_GET_FREE, _CONFIGURE = 0x4C82, 0x4C0A
_READ_ONLY, _AUTOCLEAR = 0x1, 0x4
# struct loop_config: the file's descriptor, block size (0: the usual), then struct loop_info64 with its flags and
# the name that losetup(8) shows
_CONFIG = struct.Struct("=II 52x I 64s 112x 64x")
_TRIES = 64


@contextlib.contextmanager
def loop_device(file: Path, *, read_only: bool = False) -> Iterator[os.stat_result]:
    """What fstat(2) says of a loop device of the file. Needs root, and Linux 5.8; raises `OSError`.

    The device goes when nobody has it open: we have until the end of the block, and whoever opened it meanwhile has
    for as long as that takes. So none is left, whatever kills us.
    """
    flags = os.O_CLOEXEC | os.O_NOFOLLOW | (os.O_RDONLY if read_only else os.O_RDWR)
    backing = os.open(file, flags)
    try:
        device = _bound(backing, os.fsencode(file), _AUTOCLEAR | (_READ_ONLY if read_only else 0))
    finally:
        os.close(backing)  # the device has it open
    try:
        yield os.fstat(device)
    finally:
        os.close(device)


def _bound(backing: int, name: bytes, flags: int) -> int:
    """A descriptor of a free device that was given the file."""
    config = _CONFIG.pack(backing, 0, flags, name[:63])
    control = os.open(_CONTROL, os.O_RDWR | os.O_CLOEXEC)
    try:
        for _ in range(_TRIES):
            device = os.open(f"/dev/loop{fcntl.ioctl(control, _GET_FREE)}", os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.ioctl(device, _CONFIGURE, config)
                return device
            except OSError as error:
                os.close(device)
                if error.errno != errno.EBUSY:  # somebody else was quicker
                    raise
        raise OSError(errno.EBUSY, "no loop device stays free", str(_CONTROL))
    finally:
        os.close(control)
