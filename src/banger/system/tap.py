"""Tap devices: attaching to one that exists (Linux, Documentation/networking/tuntap.rst)."""

import fcntl
import os
import socket
import struct

from banger.model.errors import HostRequirement, Invalid, NotFound

_TUNSETIFF = 0x400454CA
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
_NAME_MAX = 15


def open_tap(name: str) -> int:
    """A descriptor of the tap `name`, for frames with a virtio-net header; the caller closes it.

    Raises `Invalid` for a name that no interface can have, `NotFound`, `HostRequirement`.
    """
    if not name or len(os.fsencode(name)) > _NAME_MAX or "/" in name or any(c.isspace() for c in name):
        raise Invalid(f"{name!r} is no interface's name", hint=f"1 to {_NAME_MAX} characters, without '/' and spaces")
    try:
        # without it, TUNSETIFF would make a new device that nobody has connected to anything
        socket.if_nametoindex(name)
    except OSError as error:
        raise NotFound(f"there is no network interface {name}", hint=f"ip tuntap add dev {name} mode tap") from error
    fd = -1
    try:
        fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        flags = _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR
        fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", os.fsencode(name), flags))
    except OSError as error:
        if fd >= 0:
            os.close(fd)
        raise HostRequirement(
            f"cannot attach to the tap {name}: {error.strerror}", hint="it must be a tap, free, and yours or you root"
        ) from error
    return fd
