"""The header of a qcow2 file, read before any program opens the file (QEMU, docs/interop/qcow2.txt)."""

import os
import struct
from pathlib import Path
from typing import NamedTuple

from banger.model.errors import Invalid

_HEAD_BYTES = 64 * 1024  # the header and its extensions lie in the first cluster
_MAGIC = b"QFI\xfb"
_VERSION = 3
_BACKING_FORMAT = 0xE2792ACA
_DIRTY, _CORRUPT = 1 << 0, 1 << 1
_KNOWN = _DIRTY | _CORRUPT | 1 << 3 | 1 << 4  # and compression types, extended L2 entries; never an external data file


class Qcow2(NamedTuple):
    """What a header says. `backing` is the name as it is written, empty without one; its format is empty when not told.

    dirty    it was not closed, and its reference counts may lag behind
    corrupt  QEMU found damage and marked it, so that it is not written any more
    foreign  it has features that no file of ours has, such as its data in another file, or encryption
    """

    backing: str
    backing_format: str
    dirty: bool
    corrupt: bool
    foreign: bool


def read_qcow2(path: Path) -> Qcow2:
    """Raises `Invalid` for what is no qcow2 of version 3, or has a header that cannot be."""
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    if len(head) < 104 or not head.startswith(_MAGIC) or struct.unpack_from(">I", head, 4)[0] != _VERSION:
        raise Invalid(f"{path.name} is no qcow2 of version {_VERSION}")
    offset, size = struct.unpack_from(">QI", head, 8)
    name = head[offset : offset + size] if offset else b""
    if offset and (not size or len(name) != size or b"\0" in name):
        raise Invalid(f"{path.name} has a damaged header")
    encryption, features = struct.unpack_from(">I", head, 32)[0], struct.unpack_from(">Q", head, 72)[0]
    return Qcow2(
        backing=os.fsdecode(name),
        backing_format=_extension(head, struct.unpack_from(">I", head, 100)[0], _BACKING_FORMAT),
        dirty=bool(features & _DIRTY),
        corrupt=bool(features & _CORRUPT),
        foreign=bool(encryption or features & ~_KNOWN),
    )


def _extension(head: bytes, offset: int, wanted: int) -> str:
    while offset + 8 <= len(head):
        kind, length = struct.unpack_from(">II", head, offset)
        if kind == wanted:
            return head[offset + 8 : offset + 8 + length].decode(errors="replace")
        if kind == 0:
            break
        offset += 8 + (length + 7) // 8 * 8
    return ""
