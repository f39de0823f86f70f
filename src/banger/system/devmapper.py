"""Block devices put together by the kernel's device mapper (Linux, include/uapi/linux/dm-ioctl.h).

The kernel is asked itself, not through dmsetup: a guest writes what these devices hold, and dmsetup has no way to say
that udev shall not look for filesystems, volumes and partitions in it, and give them names on the host.
"""

import errno
import fcntl
import os
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from banger.model.errors import HostRequirement

CONTROL = Path("/dev/mapper/control")
NODES = Path("/dev")
SECTOR = 512
_ASK_VERSION, _CREATE, _REMOVE, _SUSPEND, _STATUS, _LOAD = 0, 3, 4, 6, 7, 9
_VERSION = (4, 27, 0)  # Linux 3.13, the first that removes later what is in use
# struct dm_ioctl: version, sizes of all and of itself, targets, open count, flags, cookie, device, name, uuid
_HEAD = struct.Struct("=3I I I I i I I 4x Q 128s 129s 7x")
# struct dm_target_spec: first sector, sectors, distance to the next, kind; its words follow
_TARGET = struct.Struct("=QQ 4x I 16s")
_READ_ONLY, _WHEN_CLOSED = 1 << 0, 1 << 17
# for udev's rules: no names in /dev/mapper, and nobody shall read what the device holds
_UDEV_HANDS_OFF = (0x1 | 0x2 | 0x4 | 0x8 | 0x20 | 0x40) << 16


class Target(NamedTuple):
    """What a run of a device's sectors is made of: the kind of target and its words (dmsetup(8), TABLE FORMAT)."""

    first: int
    sectors: int
    kind: str
    words: str = ""


def number(device: os.stat_result) -> str:
    """How a target's words name a block device."""
    return f"{os.major(device.st_rdev)}:{os.minor(device.st_rdev)}"


def usable() -> bool:
    """Whether this kernel has a device mapper that is new enough, and we may use it."""
    try:
        _ask(_ASK_VERSION, "")
    except OSError:
        return False
    return True


def create_device(name: str, targets: Sequence[Target], *, read_only: bool = False) -> Path:
    """Make a device of that name, and return its file. Raises `HostRequirement`; then there is none."""
    flags = _READ_ONLY if read_only else 0
    try:
        _ask(_CREATE, name)
        try:
            _ask(_LOAD, name, flags=flags, targets=targets)
            device = _ask(_SUSPEND, name, flags=flags)  # without the flag that suspends, it resumes
        except OSError:
            _ask(_REMOVE, name)
            raise
    except OSError as error:
        raise HostRequirement(
            f"device-mapper does not make {name}: {error.strerror}", hint="`dmesg` has the kernel's own words"
        ) from error
    # the kernel makes this file itself, in devtmpfs; the device's number has its minor number in two parts
    return NODES / f"dm-{(device & 0xFF) | (device >> 12 & 0xFFF00)}"


def remove_device(name: str) -> None:
    """Remove a device, at once or when nobody has it open any more. Absent is fine."""
    try:
        _ask(_REMOVE, name, flags=_WHEN_CLOSED)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise


def device_exists(name: str) -> bool:
    """Whether there is a device of that name, also one that is to be removed."""
    try:
        _ask(_STATUS, name)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        return False
    return True


def _ask(command: int, name: str, *, flags: int = 0, targets: Sequence[Target] = ()) -> int:
    """One request; the device's number."""
    body = b"".join(_spec(target) for target in targets)
    size = _HEAD.size + len(body)
    head = _HEAD.pack(*_VERSION, size, _HEAD.size, len(targets), 0, flags, _UDEV_HANDS_OFF, 0, name.encode(), b"")
    buffer = bytearray(head + body)
    control = os.open(CONTROL, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.ioctl(control, 0xC0000000 | _HEAD.size << 16 | 0xFD << 8 | command, buffer)
    finally:
        os.close(control)
    return int(_HEAD.unpack_from(buffer)[9])


def _spec(target: Target) -> bytes:
    words = target.words.encode() + b"\0"
    words += bytes(-len(words) % 8)
    return _TARGET.pack(target.first, target.sectors, _TARGET.size + len(words), target.kind.encode()) + words
