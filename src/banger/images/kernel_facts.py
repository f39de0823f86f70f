"""What is known of a kernel that somebody brings: its release, and how it was configured, wherever that is told."""

import os
import re
import stat
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from banger.images.kconfig import KernelConfig
from banger.images.kernel import (
    MAX_VMLINUX,
    BadKernel,
    extract_vmlinux,
    kernel_release,
    pvh_entry,
)
from banger.images.module_files import ReadModule, builtin_modules

MAX_CONFIG = 4 * 1024 * 1024
_RELEASE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+~-]{0,127}")
_BANNER = re.compile(rb"Linux version ([!-~]{1,128}) ")
_IKCONFIG = b"IKCFG_ST"
# A driver's own words, which only a kernel says that has it built in; and the module of that driver.
_WORDS = (
    ("VIRTIO_PCI", "virtio_pci", (b"virtio-pci\0", b"virtio_pci\0")),
    ("VIRTIO_MMIO", "virtio_mmio", (b"virtio-mmio\0", b"virtio_mmio\0")),
    ("VIRTIO_BLK", "virtio_blk", (b"virtio_blk\0",)),
    ("EXT4_FS", "ext4", (b"EXT4-fs",)),
)
# Nothing but a configuration tells of these; without one they are believed to be there.
_BELIEVED = ("BLK_DEV_INITRD", "DEVTMPFS", "SERIAL_8250_CONSOLE")
_COMMAND_LINE_DEVICES = b"virtio_mmio.device"


@dataclass(frozen=True)
class BootKernel:
    """A kernel as it is booted; `compressed`: the file was a bzImage. The release is empty where none is told."""

    vmlinux: bytes
    compressed: bool
    release: str


@dataclass(frozen=True)
class Configured:
    """How a kernel was configured, where that was found, and the text; empty where it was gathered from elsewhere."""

    config: KernelConfig
    source: str
    text: bytes = b""


def read_kernel(path: Path) -> BootKernel:
    """Raises `BadKernel` for what is no x86-64 kernel with a PVH entry, `OSError`."""
    data = read_small(path, MAX_VMLINUX, "kernel")
    vmlinux = extract_vmlinux(data)
    if pvh_entry(vmlinux) is None:
        raise BadKernel(f"the kernel {path} has no PVH entry", hint="use a kernel with CONFIG_PVH=y")
    compressed = vmlinux is not data
    found = _BANNER.search(vmlinux)
    release = kernel_release(data) if compressed else (found[1].decode() if found else "")
    return BootKernel(vmlinux, compressed, release if _RELEASE.fullmatch(release) else "")


def read_small(path: Path, limit: int, what: str) -> bytes:
    """A file of a person's. Raises `BadKernel` for one that is none or is larger, `OSError`."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    with os.fdopen(fd, "rb") as file:
        seen = os.fstat(fd)
        if not stat.S_ISREG(seen.st_mode) or seen.st_size > limit:
            raise BadKernel(f"{path} is no {what}: it has to be a file of at most {limit >> 20} MiB")
        return file.read(limit)


def find_config(
    kernel: BootKernel,
    given: Path | None,
    beside: Path,
    in_root: Callable[[str, int], bytes | None],
    modules: ReadModule | None,
) -> Configured:
    """The first that is there: the file that was given, `config-RELEASE` in the directory `beside`, the one in the
    kernel, the root's /boot, modules.builtin, and what the kernel says of its drivers.

    Raises `BadKernel` for a given file that is no configuration.
    """
    if given is not None:
        return _parsed(read_small(given, MAX_CONFIG, "kernel configuration"), str(given))
    name = f"config-{kernel.release}"
    if kernel.release and (beside / name).is_file():
        return _parsed(read_small(beside / name, MAX_CONFIG, "kernel configuration"), str(beside / name))
    if text := _built_in(kernel.vmlinux):
        return _parsed(text, "the kernel itself (IKCONFIG)")
    if kernel.release and (text := in_root(f"/boot/{name}", MAX_CONFIG) or b""):
        return _parsed(text, f"/boot/{name} in the root")
    needs_line = {"VIRTIO_MMIO_CMDLINE_DEVICES"} if _COMMAND_LINE_DEVICES in kernel.vmlinux else set()
    if modules is not None and (names := builtin_modules(modules)):
        found = {option for option, module, _ in _WORDS if module in names}
        source = "modules.builtin"
    else:
        found = {option for option, _, words in _WORDS if any(word in kernel.vmlinux for word in words)}
        source = "the names of drivers in the kernel"
    return Configured(KernelConfig(dict.fromkeys((*found, *needs_line, *_BELIEVED), "y")), source)


def _parsed(text: bytes, source: str) -> Configured:
    config = KernelConfig.parse(text.decode(errors="replace"))
    if not config.options:
        raise BadKernel(f"{source} holds no kernel configuration", hint="it has lines like CONFIG_VIRTIO_BLK=y")
    return Configured(config, source, text)


def _built_in(vmlinux: bytes) -> bytes:
    """The configuration that CONFIG_IKCONFIG puts into a kernel (Linux, kernel/configs.c)."""
    at = vmlinux.find(_IKCONFIG)
    if at < 0:
        return b""
    try:
        return zlib.decompressobj(31).decompress(vmlinux[at + len(_IKCONFIG) : at + MAX_CONFIG], MAX_CONFIG)
    except zlib.error:
        return b""
