"""Everything of the host that QEMU gets, opened by us: QEMU itself may open nothing of ours by name.

So QEMU can run as a user who owns nothing, and has only the files it was given.
"""

import os
import shutil
from collections.abc import Collection

from banger.model.errors import BangerError, Invalid
from banger.model.firecracker import Drive
from banger.qemu.disks import Layer, open_layers
from banger.qemu.machine import Configuration
from banger.system.tap import open_tap

_OTHERS_READ = 0o004
_HEAD = 0x210


class Handles:
    """Open descriptors: kernel and initramfs, each drive's layers, each tap."""

    def __init__(self, kernel_path: str = "", initrd_path: str | None = None) -> None:
        self.kernel = -1
        self.initrd = -1
        self.drives: dict[str, list[Layer]] = {}
        self.taps: dict[str, int] = {}
        self._paths = (kernel_path, initrd_path or "")

    def all(self) -> list[int]:
        layers = [layer.fd for layers in self.drives.values() for layer in layers]
        return [fd for fd in (self.kernel, self.initrd, *layers, *self.taps.values()) if fd >= 0]

    def names(self) -> dict[str, str]:
        """What QEMU calls a descriptor, and what the person called the file."""
        files = zip((self.kernel, self.initrd), self._paths, strict=True)
        layers = [layer for layers in self.drives.values() for layer in layers]
        return {f"/proc/self/fd/{fd}": path for fd, path in files if fd >= 0} | {
            f"/dev/fdset/{layer.fd}": layer.path for layer in layers
        }

    def keep_drives(self) -> dict[str, list[Layer]]:
        """The drives' layers, from here on the caller's to close."""
        kept, self.drives = self.drives, {}
        return kept

    def close(self) -> None:
        for fd in self.all():
            os.close(fd)


def open_handles(config: Configuration, backing_files: Collection[str]) -> Handles:
    """Open what the configuration names. Raises `Invalid` naming the file; then nothing is left open."""
    if config.boot is None:
        raise Invalid("The kernel has not been specified: PUT /boot-source first")
    handles = Handles(config.boot.kernel_image_path, config.boot.initrd_path)
    try:
        handles.kernel = _readable(config.boot.kernel_image_path, "kernel")
        if config.boot.initrd_path is not None:
            handles.initrd = _readable(config.boot.initrd_path, "initramfs")
        for drive in config.drives.values():
            handles.drives[drive.drive_id] = open_drive(drive, backing_files)
        for nic in config.nics.values():
            if not nic.host_dev_name.startswith("user:"):
                handles.taps[nic.iface_id] = open_tap(nic.host_dev_name)
    except BangerError:
        handles.close()
        raise
    return handles


def open_drive(drive: Drive, backing_files: Collection[str]) -> list[Layer]:
    """The drive's layers, topmost first. Raises `Invalid`."""
    assert drive.path_on_host is not None
    return open_layers(drive.path_on_host, read_only=drive.is_read_only is True, backing_files=backing_files)


def is_elf(kernel: int) -> bool:
    """Whether the kernel is an uncompressed ELF, which the firmware enters directly; else it is a bzImage.

    Raises `Invalid` when it is neither: QEMU would run whatever it is.
    """
    head = os.pread(kernel, _HEAD, 0)
    if head.startswith(b"\x7fELF"):
        return True
    if head[0x202:0x206] == b"HdrS":  # Linux, Documentation/arch/x86/boot.rst
        return False
    raise Invalid("The kernel is neither an uncompressed ELF nor a bzImage")


def _readable(path: str, what: str) -> int:
    """A descriptor whose /proc/self/fd name any user may open: the file's own, or that of a copy in memory."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        if os.geteuid() != 0 or os.fstat(fd).st_mode & _OTHERS_READ:
            return fd
        copy = os.memfd_create(what)
        with os.fdopen(fd, "rb") as source, os.fdopen(copy, "wb", closefd=False) as target:
            shutil.copyfileobj(source, target, 1 << 20)
        os.fchmod(copy, 0o444)
        return copy
    except OSError as error:
        raise Invalid(f"The {what} {path!r} cannot be opened: {error.strerror}") from error
