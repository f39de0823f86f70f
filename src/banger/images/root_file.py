"""A file that shall be an image's root: an ext4 and nothing around it, that nobody is writing to."""

import re
from pathlib import Path

from banger.images.root_tree import RootTree
from banger.model.errors import Invalid
from banger.system.ext4 import read_superblock

_HEAD = 128 * 1024
_SECTOR = 512
_OS_RELEASE, _MAX_OS_RELEASE = ("/usr/lib/os-release", "/etc/os-release"), 64 * 1024
_FIELD = re.compile(r"""^(ID|VERSION_ID)=["']?([A-Za-z0-9._+-]{1,40})["']?\s*$""", re.MULTILINE)
# What it may be instead: where the mark stands, the mark, and what that is.
_OTHERS = (
    (0, b"QFI\xfb", "a qcow2", "qemu-img convert -f qcow2 -O raw {} root.raw"),
    (0, b"KDMV", "a VMDK", "qemu-img convert -f vmdk -O raw {} root.raw"),
    (0, b"conectix", "a VHD", "qemu-img convert -f vpc -O raw {} root.raw"),
    (0, b"vhdxfile", "a VHDX", "qemu-img convert -f vhdx -O raw {} root.raw"),
    (0, b"\x1f\x8b", "compressed with gzip", "gzip -d {}"),
    (0, b"\xfd7zXZ\0", "compressed with xz", "xz -d {}"),
    (0, b"\x28\xb5\x2f\xfd", "compressed with zstd", "zstd -d {}"),
    (0, b"XFSB", "an XFS filesystem", ""),
    (0, b"hsqs", "a squashfs", "unsquashfs -d tree {}"),
    (0x8001, b"CD001", "an ISO 9660 image", ""),
    (0x10040, b"_BHRfS_M", "a Btrfs filesystem", ""),
)
_TREE = "a tree of files becomes a root by `mke2fs -t ext4 -d TREE root.ext4 4G`"


def check_root_file(path: Path) -> None:
    """Raise `Invalid` naming what the file is instead, or what is wrong with it; `OSError`."""
    with path.open("rb") as file:
        head = file.read(_HEAD)
    _check_no_other(path, head)
    superblock = read_superblock(path)
    size = path.stat().st_size
    if superblock.has_errors:
        raise Invalid(
            f"the filesystem in {path} is damaged, or the file of {size} bytes is only a part of it",
            hint=f"`e2fsck -f -n {path}` shows what is wrong",
        )
    if not superblock.clean:
        raise Invalid(
            f"the filesystem in {path} is mounted, or was not unmounted: its journal has something left to do",
            hint=f"unmount it; after a crash, `e2fsck -p {path}` completes it",
        )
    if size % _SECTOR:
        raise Invalid(f"{path} has {size} bytes, no whole sectors of {_SECTOR}", hint=f"truncate -s %{_SECTOR} {path}")


def _check_no_other(path: Path, head: bytes) -> None:
    for at, mark, what, command in _OTHERS:
        if head[at : at + len(mark)] == mark:
            hint = f"a root is a plain ext4: try `{command.format(path)}`" if command else _TREE
            raise Invalid(f"{path} is {what} and not the ext4 of a root filesystem", hint=hint)
    gpt = head[_SECTOR : _SECTOR + 8] == b"EFI PART"
    types = [head[at] for at in range(0x1BE + 4, 0x1BE + 64, 16)] if len(head) >= _SECTOR else []
    states = [head[at] for at in range(0x1BE, 0x1BE + 64, 16)] if len(head) >= _SECTOR else []
    mbr = head[510:512] == b"\x55\xaa" and any(types) and all(state in (0, 0x80) for state in states)
    if gpt or (mbr and head[1080:1082] != b"\x53\xef"):
        raise Invalid(
            f"{path} is a whole disk with a partition table, and a root is one ext4 filesystem alone",
            hint=f"`fdisk -l {path}` shows where it lies; `dd if={path} of=root.ext4 bs=512 skip=START count=SECTORS` "
            "copies it out",
        )


def read_os_release(root: RootTree) -> tuple[str, str]:
    """ID and VERSION_ID of the root (os-release(5)); empty where they are not told."""
    for path in _OS_RELEASE:
        if (raw := root.read(path, _MAX_OS_RELEASE)) is not None:
            fields = dict(_FIELD.findall(raw.decode(errors="replace")))
            return fields.get("ID", ""), fields.get("VERSION_ID", "")
    return "", ""
