"""Small synthetic kernels: an x86-64 ELF, and a bzImage around a payload."""

import bz2
import gzip
import lzma
import struct
from collections.abc import Callable

import lz4.block
import zstandard

RELEASE = b"6.99.1-test (builder@example) #1 SMP\0"


PVH_NOTE = (b"Xen\0", 18, struct.pack("<Q", 0x1000100))


def elf(*, note: tuple[bytes, int, bytes] | None = PVH_NOTE, machine: int = 62) -> bytes:
    """An ET_EXEC with one program header: a note, or an empty load segment."""
    content = b""
    if note is not None:
        content = struct.pack("<III", len(note[0]), len(note[2]), note[1]) + note[0] + note[2]
    ident = b"\x7fELF\x02\x01\x01" + bytes(9)
    header = ident + struct.pack("<HHIQQQIHHHHHH", 2, machine, 1, 0x1000000, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    kind = 4 if note is not None else 1
    program = struct.pack("<IIQQQQQQ", kind, 0, 120, 0, 0, len(content), len(content), 4)
    return header + program + content + bytes(5000)


def _legacy_lz4(content: bytes) -> bytes:
    out = b"\x02\x21\x4c\x18"
    for start in range(0, len(content), 4096):
        block = lz4.block.compress(content[start : start + 4096], store_size=False)
        out += struct.pack("<I", len(block)) + block
    return out


COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "xz": lzma.compress,
    "lzma": lambda content: lzma.compress(content, lzma.FORMAT_ALONE),
    "bzip2": bz2.compress,
    "lz4": _legacy_lz4,
    "zstd": zstandard.ZstdCompressor().compress,
}


def payload(kind: str, content: bytes, *, size: int | None = None) -> bytes:
    """As the kernel's build makes it: a size word is appended for all but gzip, which ends in one."""
    packed = COMPRESSORS[kind](content)
    word = struct.pack("<I", len(content) if size is None else size)
    return packed if kind == "gzip" else packed + word


def bzimage(content: bytes, *, protocol: int = 0x20F) -> bytes:
    """Two setup sectors with the header's fields, then the payload at an offset of 32 bytes."""
    setup = bytearray(1024)
    setup[0x1F1] = 1
    setup[0x1FE:0x200] = b"\x55\xaa"
    setup[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", setup, 0x206, protocol)
    struct.pack_into("<H", setup, 0x20E, 0x80)
    struct.pack_into("<II", setup, 0x248, 32, len(content))
    setup[0x280 : 0x280 + len(RELEASE)] = RELEASE
    return bytes(setup) + bytes(32) + content
