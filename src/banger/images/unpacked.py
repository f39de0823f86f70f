"""An initramfs as the kernel unpacks it, read piece by piece: what is compressed in it comes out plain.

Its archives lie one behind the other, each plain or compressed in its own way, with zeros in between
(Documentation/driver-api/early-userspace/buffer-format.rst). They may be anybody's: however little a few bytes say
that there is, no more than a few MiB are held at a time, and an end is set to the whole.
"""

import bz2
import lzma
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import Protocol

import lz4.block
import zstandard

from banger.model.errors import Invalid

MAX_BYTES = 1024 * 1024 * 1024  # of all that is unpacked
_PIECE = 256 * 1024
_MEMORY = 256 * 1024 * 1024  # of a decompressor: xz -9 needs 65 MiB
_ZSTD_WINDOW = 1 << 27
_ZSTD_FED = 512  # bytes at a time, as so few can be a hundred blocks of 128 KiB
_LZ4_BLOCK, _LZ4_MAX, _LZ4_MAGIC = 8 * 1024 * 1024, 8 * 1024 * 1024 + 64 * 1024, 0x184C2102


class BadInitramfs(Invalid):
    """The file is not an initramfs that a kernel can unpack, or one that is not looked into."""


class Source:
    """Bytes that come in pieces, of which some can be put back. `told` hears how many have come."""

    def __init__(self, pieces: Iterator[bytes], told: Callable[[int], None] = lambda count: None) -> None:
        self._pieces = pieces
        self._told = told
        self._held = b""
        self._next = 0  # of what is held, the first that was not taken yet
        self.at = 0

    def _more(self) -> bool:
        piece = next(self._pieces, b"")
        self._told(len(piece))
        self._held = self._held[self._next :] + piece
        self._next = 0
        return bool(piece)

    def peek(self, count: int) -> bytes:
        """The next bytes, which stay; fewer at the end."""
        while len(self._held) - self._next < count and self._more():
            pass
        return self._held[self._next : self._next + count]

    def take(self, count: int) -> bytes:
        """The next bytes; fewer at the end."""
        return self._taken(self.peek(count))

    def some(self, most: int = _PIECE) -> bytes:
        """At least one byte, unless it is the end."""
        if self._next == len(self._held):
            self._more()
        return self._taken(self._held[self._next : self._next + most])

    def _taken(self, found: bytes) -> bytes:
        self._next += len(found)
        self.at += len(found)
        return found

    def back(self, unused: bytes) -> None:
        self._held = unused + self._held[self._next :]
        self._next = 0
        self.at -= len(unused)

    def skip(self, count: int) -> None:
        """Raises `BadInitramfs` when there are not so many."""
        while count:
            passed = len(self.some(min(count, _PIECE)))
            if not passed:
                raise BadInitramfs("the initramfs is truncated")
            count -= passed


class _Decoder(Protocol):
    """lzma's and bz2's."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int = ...) -> bytes: ...


def _stepwise(source: Source, decoder: _Decoder) -> Iterator[bytes]:
    while not decoder.eof:
        data = source.some() if decoder.needs_input else b""
        if decoder.needs_input and not data:
            raise EOFError("it is truncated")
        yield decoder.decompress(data, _PIECE)
    source.back(decoder.unused_data)


def _xz(source: Source) -> Iterator[bytes]:
    return _stepwise(source, lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_MEMORY))


def _lzma(source: Source) -> Iterator[bytes]:
    return _stepwise(source, lzma.LZMADecompressor(lzma.FORMAT_ALONE, memlimit=_MEMORY))


def _bzip2(source: Source) -> Iterator[bytes]:
    return _stepwise(source, bz2.BZ2Decompressor())


def _gzip(source: Source) -> Iterator[bytes]:
    decoder = zlib.decompressobj(31)
    while not decoder.eof:
        data = decoder.unconsumed_tail or source.some()
        if not data:
            raise EOFError("it is truncated")
        yield decoder.decompress(data, _PIECE)
    source.back(decoder.unused_data)


def _zstd(source: Source) -> Iterator[bytes]:
    decoder = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW).decompressobj()
    while not decoder.eof:
        if not (data := source.some(_ZSTD_FED)):
            raise EOFError("it is truncated")
        yield decoder.decompress(data)
    source.back(decoder.unused_data)


def _lz4(source: Source) -> Iterator[bytes]:
    """The legacy frame: magic, then blocks of a little-endian length and at most 8 MiB of content each."""
    source.skip(4)
    while len(raw := source.peek(4)) == 4:
        (length,) = struct.unpack("<I", raw)
        if length == _LZ4_MAGIC:
            source.skip(4)
            continue
        if not 0 < length <= _LZ4_MAX:
            return  # what is behind it: zeros, or another archive
        source.skip(4)
        block = source.take(length)
        if len(block) != length:
            raise EOFError("it is truncated")
        yield lz4.block.decompress(block, uncompressed_size=_LZ4_BLOCK)


COMPRESSIONS: tuple[tuple[bytes, str, Callable[[Source], Iterator[bytes]]], ...] = (
    (b"\x1f\x8b", "gzip", _gzip),
    (b"\xfd7zXZ\0", "xz", _xz),
    (b"BZh", "bzip2", _bzip2),
    (b"\x5d\0\0", "lzma", _lzma),
    (b"\x02\x21\x4c\x18", "lz4", _lz4),
    (b"\x28\xb5\x2f\xfd", "zstd", _zstd),
)
DECODE_ERRORS = (
    zlib.error, lzma.LZMAError, zstandard.ZstdError, lz4.block.LZ4BlockError, OSError, EOFError, ValueError,
    MemoryError,
)  # fmt: skip


class Budget:
    """How much may still be unpacked."""

    def __init__(self) -> None:
        self._left = MAX_BYTES

    def spend(self, count: int) -> None:
        self._left -= count
        if self._left < 0:
            raise BadInitramfs(f"the initramfs unpacks to more than {MAX_BYTES >> 20} MiB")


def unpacked(source: Source, budget: Budget) -> Source | None:
    """What is compressed at this place of the source, plain; None when nothing known is.

    Read it to its end before going on in `source`, which stands behind it then. Reading raises `BadInitramfs`.
    """
    head = source.peek(8)
    for magic, name, decode in COMPRESSIONS:
        if head.startswith(magic):
            return Source(_bounded(decode(source), name, budget))
    if head.startswith(b"\x89LZO"):
        raise BadInitramfs("the initramfs is compressed with lzo", hint="compress it with zstd, xz, lz4 or gzip")
    return None


def _bounded(pieces: Iterator[bytes], name: str, budget: Budget) -> Iterator[bytes]:
    try:
        for piece in pieces:
            budget.spend(len(piece))
            if piece:
                yield piece
    except BadInitramfs:
        raise
    except DECODE_ERRORS as error:
        raise BadInitramfs(f"the initramfs's {name} content is damaged: {error}") from error
