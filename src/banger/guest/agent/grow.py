"""POST /grow: make a mounted ext4 as large as its device, while it is in use (EXT4_IOC_RESIZE_FS, no program).

What counts is read from the superblock: statvfs(3) leaves out the blocks that the filesystem keeps for itself.
"""

import os
from errno import EBUSY, ENOTTY, EOPNOTSUPP
from fcntl import ioctl
from struct import pack
from time import monotonic, sleep

from banger.guest.agent.health import read_text
from banger.guest.agent.http1 import Refused, Request, document

NOTICE_SECONDS = 5.0  # for the kernel to be told of the device's new size
MAX_PATH = 4096
_MAX_BYTES = 1 << 63
_LOOK_SECONDS = 0.02
_SECTOR = 512  # of /sys/dev/block/*/size, whatever the device's own are (Linux, include/linux/blk_types.h)
_RESIZE_FS = 0x40086610  # _IOW('f', 16, __u64), Linux, fs/ext4/ext4.h
_SUPERBLOCK = 1024
_MAGIC = 0xEF53
_INCOMPAT_64BIT = 0x80


def grow(request: Request) -> "dict[str, object]":
    """The body of the answer. Raises `Refused` 400, 409 for what cannot be grown, 500."""
    path, least = _asked(request)
    try:
        mount = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise Refused(409, f"{path}: {error.strerror}") from None
    try:
        return _grow(path, mount, least)
    except OSError as error:
        if error.errno == EBUSY:
            raise Refused(409, f"{path} is being grown already") from None
        if error.errno in (ENOTTY, EOPNOTSUPP):
            raise Refused(409, f"this kernel cannot grow {path} while it is mounted") from None
        raise Refused(500, f"{path} could not be grown: {error.strerror or error}") from None
    finally:
        os.close(mount)


def _asked(request: Request) -> "tuple[str, int]":
    given = document(request.body, frozenset({"path", "device_bytes"}))
    path, least = given.get("path"), given.get("device_bytes", 0)
    if not isinstance(path, str) or not path.startswith("/") or len(path) > MAX_PATH or "\0" in path:
        raise Refused(400, f"path is absolute, of at most {MAX_PATH} characters")
    if not isinstance(least, int) or isinstance(least, bool) or not 0 <= least < _MAX_BYTES:
        raise Refused(400, "device_bytes is a number of bytes")
    return path, least


def _grow(path: str, mount: int, least: int) -> "dict[str, object]":
    if not os.path.ismount(path):
        raise Refused(409, f"nothing is mounted at {path}")
    number = os.fstat(mount).st_dev
    folder = f"/sys/dev/block/{os.major(number)}:{os.minor(number)}"
    # a directory of its own for each mounted ext4, by the device's name (Documentation/ABI/testing/sysfs-fs-ext4)
    name = os.path.basename(os.path.realpath(folder))
    if not os.path.isdir(folder) or not os.path.isdir("/sys/fs/ext4/" + name):
        raise Refused(409, f"{path} is no ext4 on a device")
    device = _open_device(name, number)
    try:
        size = _device_bytes(folder, least)
        before, block = _superblock(device)
        if size // block > before:
            ioctl(mount, _RESIZE_FS, pack("=Q", size // block))
        after, _ = _superblock(device)
    finally:
        os.close(device)
    return {"bytes": after * block, "grown": after > before}


def _open_device(name: str, number: int) -> int:
    try:
        device = os.open("/dev/" + name.replace("!", "/"), os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise Refused(409, f"/dev/{name}: {error.strerror}") from None
    if os.fstat(device).st_rdev != number:
        os.close(device)
        raise Refused(409, f"/dev/{name} is another device")
    return device


def _device_bytes(folder: str, least: int) -> int:
    """The device's size, once it has at least so many bytes: the host may ask before the kernel has been told."""
    deadline = monotonic() + NOTICE_SECONDS
    while True:
        size = int(read_text(folder + "/size") or "0") * _SECTOR
        if size >= least:
            return size
        if monotonic() >= deadline:
            raise Refused(409, f"the disk has {size} bytes for this kernel, not {least}")
        sleep(_LOOK_SECONDS)


def _superblock(device: int) -> "tuple[int, int]":
    """Blocks of the filesystem, and bytes of a block (Linux, Documentation/filesystems/ext4/super.rst)."""
    data = os.pread(device, 1024, _SUPERBLOCK)

    def field(at: int, size: int) -> int:
        return int.from_bytes(data[at : at + size], "little")

    if field(0x38, 2) != _MAGIC:
        raise Refused(500, "the device has no ext4 superblock")
    high = field(0x150, 4) if field(0x60, 4) & _INCOMPAT_64BIT else 0
    return field(0x4, 4) | high << 32, 1024 << field(0x18, 4)
