"""Files that a person could register: a small root, a kernel that says what it has, an initramfs."""

import asyncio
import gzip
from pathlib import Path

from banger.images.initramfs import pack
from banger.system.ext4 import MIB, make_ext4
from tests.unit.images.kernels import bzimage, elf, payload

RELEASE = "6.99.1-test"
BANNER = f"Linux version {RELEASE} (builder@example) #1 SMP\0".encode()
DRIVERS = b"virtio-pci\0virtio_blk\0EXT4-fs (%s): mounted\0"
CONFIG = (
    b"CONFIG_VIRTIO_PCI=y\nCONFIG_VIRTIO_BLK=m\nCONFIG_EXT4_FS=y\nCONFIG_BLK_DEV_INITRD=y\nCONFIG_DEVTMPFS=y\n"
    b"CONFIG_SERIAL_8250_CONSOLE=y\n"
)
OURS = pack(b"box", [("virtio_blk", b"\x7fELF")])


def vmlinux(extra: bytes = DRIVERS) -> bytes:
    return elf() + BANNER + extra + bytes(64)


def with_config(config: bytes = CONFIG) -> bytes:
    """A kernel that holds its configuration."""
    return vmlinux(b"IKCFG_ST" + gzip.compress(config) + b"IKCFG_ED")


def compressed(content: bytes) -> bytes:
    """A bzImage of it."""
    return bzimage(payload("gzip", content))


def make_root(directory: Path, name: str = "root.ext4", **files: str) -> Path:
    """An ext4 with an agent, a release, and these files; two underscores are a slash."""
    tree, root = directory / f"{name}.tree", directory / name
    contents = {
        "etc/os-release": 'NAME="Tiny"\nID=tiny\nVERSION_ID="7"\n',
        "usr/lib/banger/banger/guest/agent/__main__.py": "",
        "root/.bashrc": "",
    } | {path.replace("__", "/"): content for path, content in files.items()}
    for path, content in contents.items():
        place = tree / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(content)
    (tree / "lib").symlink_to("usr/lib")
    asyncio.run(make_ext4(root, 16 * MIB, label="tiny", tree=tree))
    return root
