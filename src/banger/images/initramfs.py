"""The initramfs: busybox, the drivers of a virtual machine, and a short /init that mounts the root."""

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from banger.images.cpio import BLOCK, Cpio
from banger.images.kernel import BadKernel, is_static
from banger.images.modules import Resolved, read_module, resolve
from banger.model.errors import HostRequirement

# The disk's transport and driver first, then what the guest would otherwise load while it boots.
DRIVERS = ("virtio_pci", "virtio_mmio", "virtio_blk", "ext4", "virtio_net", "vsock", "vmw_vsock_virtio_transport")
_BUSYBOX = Path("/bin/busybox")
_DIRECTORIES = ("bin", "dev", "modules", "proc", "root", "sys")


def read_busybox(path: Path = _BUSYBOX) -> bytes:
    """The host's static busybox. Raises `HostRequirement` when it is absent or needs libraries."""
    hint = "apt-get install busybox-static"
    try:
        content = path.read_bytes()
    except OSError as error:
        raise HostRequirement(f"there is no {path}", hint=hint) from error
    try:
        static = is_static(content)
    except BadKernel:
        static = False
    if not static:
        raise HostRequirement(f"{path} is not a static x86-64 program", hint=hint)
    return content


def pack(busybox: bytes, modules: Sequence[tuple[str, bytes]]) -> bytes:
    """The archive's bytes, the same for the same input; modules are name and content in loading order."""
    archive = Cpio()
    for name in _DIRECTORIES:
        archive.directory(name)
    archive.character_device("dev/console", 5, 1)
    archive.file("bin/busybox", busybox, 0o755)
    archive.symlink("bin/sh", "busybox")
    _add_init(archive)
    for index, (name, content) in enumerate(modules):
        archive.file(f"modules/{index:02}-{name}.ko", content)
    return archive.finish()


def _add_init(archive: Cpio) -> None:
    archive.file("init", files("banger.images").joinpath("files/init").read_bytes(), 0o755)


def renew_init(initramfs: bytes) -> bytes:
    """An initramfs with another archive behind it, which has this banger's first process.

    The kernel unpacks one archive after the other, and later files replace earlier ones
    (Documentation/driver-api/early-userspace/buffer-format.rst).
    """
    archive = Cpio()
    _add_init(archive)
    return initramfs + bytes(-len(initramfs) % BLOCK) + archive.finish()


def build_initramfs(modules_directory: Path) -> tuple[bytes, Resolved]:
    """The uncompressed initramfs for the kernel whose modules lie there, and the modules it loads."""
    resolved = resolve(modules_directory, DRIVERS)
    contents = [read_module(modules_directory / file) for file in resolved.files]
    return pack(read_busybox(), list(zip(resolved.names, contents, strict=True))), resolved
