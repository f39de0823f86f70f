"""An uncompressed vmlinux out of an x86 bzImage, and what its ELF headers say.

Sources: Documentation/arch/x86/boot.rst (setup header), Documentation/arch/x86/zero-page.rst, elf(5),
xen/include/public/elfnote.h (note 18, the PVH entry). Kernels come from packages and from users' files:
every size is bounded and nothing is believed unchecked.
"""

import struct
from collections.abc import Callable, Iterator

from banger.images.unpacked import COMPRESSIONS, DECODE_ERRORS, Source
from banger.model.errors import Invalid

MAX_VMLINUX = 512 * 1024 * 1024
_PT_INTERP, _PT_NOTE = 3, 4
_NOTE_PVH = 18
_ELF_HINT = "use a bzImage or vmlinux of an x86-64 Linux"


class BadKernel(Invalid):
    """The file is not a kernel that banger can boot."""


def _check_setup(data: bytes) -> None:
    if len(data) < 0x264 or data[0x1FE:0x200] != b"\x55\xaa" or data[0x202:0x206] != b"HdrS":
        raise BadKernel("the file is not an x86 bzImage", hint=_ELF_HINT)
    (protocol,) = struct.unpack_from("<H", data, 0x206)
    if protocol < 0x208:
        raise BadKernel(f"the kernel's boot protocol {protocol:#x} is too old", hint="use Linux 2.6.26 or later")


def kernel_release(data: bytes) -> str:
    """The release that a bzImage's setup header names, such as `6.12.1-cloud-amd64`; empty when it names none."""
    _check_setup(data)
    (offset,) = struct.unpack_from("<H", data, 0x20E)
    raw = data[0x200 + offset : 0x200 + offset + 256].split(b"\0")[0] if offset else b""
    words = raw.decode("ascii", "replace").split()
    return words[0] if words else ""


def _payload(data: bytes) -> bytes:
    _check_setup(data)
    offset, length = struct.unpack_from("<II", data, 0x248)
    start = ((data[0x1F1] or 4) + 1) * 512 + offset
    payload = data[start : start + length]
    if length < 16 or len(payload) != length:
        raise BadKernel("the bzImage is truncated", hint="fetch the kernel again")
    return payload


def extract_vmlinux(data: bytes, *, limit: int = MAX_VMLINUX) -> bytes:
    """The x86-64 ELF inside a bzImage, or `data` itself when it is one; at most `limit` bytes.

    Raises `BadKernel` for anything else: not a kernel, truncated, damaged, too large, lzo.
    """
    if data.startswith(b"\x7fELF"):
        check_elf(data)
        return data
    payload = _payload(data)
    if payload.startswith(b"\x89LZO"):
        raise BadKernel("the kernel is compressed with lzo", hint="use one compressed with zstd, xz, lz4 or gzip")
    for magic, name, decode in COMPRESSIONS:
        if payload.startswith(magic):
            elf = _decode(payload, name, decode, limit)
            check_elf(elf)
            return elf
    raise BadKernel("the kernel's compression is not known", hint=_ELF_HINT)


def _decode(payload: bytes, name: str, decode: Callable[[Source], Iterator[bytes]], limit: int) -> bytes:
    (size,) = struct.unpack_from("<I", payload, len(payload) - 4)
    if size > limit:
        raise BadKernel(f"the kernel claims to hold {size} bytes, more than {limit}", hint=_ELF_HINT)
    elf = bytearray()
    try:
        # gzip's own last word is the size; all others have a size word appended
        for piece in decode(Source(iter([payload if name == "gzip" else payload[:-4]]))):
            elf += piece
            if len(elf) > size:
                break
    except DECODE_ERRORS as error:
        raise BadKernel(f"the kernel's {name} content is damaged: {error}", hint="fetch the kernel again") from error
    if len(elf) != size:
        raise BadKernel(
            f"the kernel holds {'more' if len(elf) > size else len(elf)} bytes where its header says {size}",
            hint="fetch the kernel again",
        )
    return bytes(elf)


def check_elf(elf: bytes) -> None:
    """Raise `BadKernel` unless this is a 64-bit little-endian x86-64 executable with whole program headers."""
    if len(elf) < 64 or elf[:6] != b"\x7fELF\x02\x01" or struct.unpack_from("<HH", elf, 16) != (2, 62):
        raise BadKernel("the kernel is not an x86-64 executable", hint=_ELF_HINT)
    (start,) = struct.unpack_from("<Q", elf, 32)
    entry, count = struct.unpack_from("<HH", elf, 54)
    if entry < 56 or start + entry * count > len(elf):
        raise BadKernel("the kernel's program headers are damaged", hint=_ELF_HINT)


def _segments(elf: bytes) -> Iterator[tuple[int, bytes]]:
    """Type and content of each segment (elf(5), Elf64_Phdr)."""
    (start,) = struct.unpack_from("<Q", elf, 32)
    entry, count = struct.unpack_from("<HH", elf, 54)
    for index in range(count):
        kind, _, offset, _, _, size = struct.unpack_from("<IIQQQQ", elf, start + index * entry)
        yield kind, elf[offset : offset + size] if kind in (_PT_INTERP, _PT_NOTE) else b""


def pvh_entry(elf: bytes) -> int | None:
    """The address of the PVH entry, by which QEMU starts a vmlinux; None when the kernel has none."""
    check_elf(elf)
    for kind, content in _segments(elf):
        if kind == _PT_NOTE and (found := _note(content)) is not None:
            return found
    return None


def is_static(elf: bytes) -> bool:
    """Whether this is an x86-64 program that needs no dynamic loader."""
    check_elf(elf)
    return all(kind != _PT_INTERP for kind, _ in _segments(elf))


def _note(notes: bytes) -> int | None:
    at = 0
    while at + 12 <= len(notes):
        name_size, size, kind = struct.unpack_from("<III", notes, at)
        value = at + 12 + (name_size + 3 & ~3)
        if notes[at + 12 : at + 12 + name_size] == b"Xen\0" and kind == _NOTE_PVH and value + size <= len(notes):
            return int.from_bytes(notes[value : value + size], "little")
        at = value + (size + 3 & ~3)
    return None
