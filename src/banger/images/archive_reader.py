"""Reading an image out of an archive that anybody may have written, as it comes: bounded in time, memory and room.

Names in it are compared, and never used. Nothing is a file of an image before its digest was found right.
"""

import os
import select
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack
from pathlib import Path

import zstandard

from banger.images.archive_kind import ZSTD_MAGIC
from banger.images.archive_manifest import MANIFEST, MANIFEST_MAX, Manifest, Packed, read_manifest
from banger.model.errors import Invalid
from banger.model.text import harmless
from banger.system.files import SparseDigest, sync_path
from banger.system.sparse_tar import BLOCK, BadMember, Member, read_member
from banger.system.stoppable import Stop

PARTIAL = ".partial"
_SILENCE_S = 600.0
_HEADER_MAX, _BLOCK_MAX = 18, 128 * 1024  # of a frame (RFC 8878, 3.1.1)
_RAW, _RLE, _COMPRESSED = range(3)
_WINDOW_MAX = 8 * 1024 * 1024  # which every reader of zstd has room for (3.1.1.1.2)
_EMPTY_MAX = 1000  # blocks in a row: a writer that is told to flush makes one
_TRAILER_MAX = 1024 * 1024  # tar fills its last record with zeros
_HINT = "get it again from where it was exported; nothing of it is left here"


class Source:
    """An open file, or the reading end of a pipe. `stop` ends the wait for it, and is given before each step."""

    def __init__(self, descriptor: int) -> None:
        self.stop: Stop | None = None
        self.at = 0
        self._descriptor = descriptor
        os.set_blocking(descriptor, False)

    def read(self, count: int) -> bytes:
        """1 to `count` bytes; none at the end. Raises `Cancelled`, `Timeout`, `OSError`."""
        assert self.stop is not None
        self.stop.check()
        while True:
            try:
                data = os.read(self._descriptor, count)
            except BlockingIOError:
                # not before: of a FIFO whose writers left before we came, poll(2) does not tell that it has ended
                self.stop.wait_for(self._descriptor, select.POLLIN, _SILENCE_S)
                continue
            self.at += len(data)
            return data


class ArchiveReader:
    """An archive's parts, read in one go: first `manifest`, then `parts`. All that is wrong with it is `Invalid`."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self._frame = _Frame(source)
        self._waiting = memoryview(b"")
        self._where = MANIFEST
        self._left = self._whole = 0  # of the data of the part that is being read
        self._done = 0  # of the data of all parts
        self._told: Callable[[int], None] = lambda count: None

    def manifest(self, stop: Stop, *, largest: int) -> tuple[Manifest, bytes]:
        """What the archive says it holds, checked, and as it was written. See `read_manifest`."""
        self.source.stop = stop
        member = self._next()
        if member is None or member.name != MANIFEST or len(member.runs) != 1 or member.size > MANIFEST_MAX:
            raise self._damaged(f"it does not begin with {MANIFEST}")
        raw = self._data(member)
        return read_manifest(raw, largest=largest), raw

    def parts(
        self,
        stop: Stop,
        manifest: Manifest,
        directory: Path | None = None,
        kept: Collection[str] = (),
        told: Callable[[int], None] = lambda count: None,
    ) -> None:
        """Read to the end, and put each part into the directory, durably, once its digest was found right.

        `kept` are names of those that are there already. Without a directory nothing is written. `told` hears how many
        bytes of data have been read.
        """
        self.source.stop = stop
        self._told = told
        wanted = {part.file: part for part in manifest.parts}
        while (member := self._next()) is not None:
            part = wanted.pop(member.name, None)
            if part is None:
                known = member.name in {part.file for part in manifest.parts}
                name = harmless(member.name)
                raise self._damaged(f"it holds {name} twice" if known else f"it holds {name!r}, which is no part of it")
            if (member.size, member.stored) != (part.bytes, part.stored):
                raise self._damaged(f"{part.file} has another size than {MANIFEST} says")
            self._where = part.file

            if part.file in kept:
                self._pass_over(member)
            else:
                self._part(stop, member, part, directory)
        if wanted:
            raise self._damaged(f"it holds no {next(iter(wanted))}")
        self._finish()

    def _part(self, stop: Stop, member: Member, part: Packed, directory: Path | None) -> None:
        """Check a part's content, and write it."""
        digest = SparseDigest(stop.check)
        with ExitStack() as stack:
            file = None
            if directory is not None:
                file = stack.enter_context((directory / (part.file + PARTIAL)).open("xb", buffering=0))
                os.fchmod(file.fileno(), 0o600)
                file.truncate(part.bytes)
            for offset, piece in self._pieces(member):
                digest.add(offset, piece)
                if file is not None:
                    _write(file.fileno(), piece, offset)
            if digest.finish(part.bytes) != part.sha256:
                raise self._damaged(f"the digest of {part.file} is wrong")
            if file is not None:
                os.fsync(file.fileno())
        if directory is not None:
            (directory / (part.file + PARTIAL)).rename(directory / part.file)
            sync_path(directory)

    def _pass_over(self, member: Member) -> None:
        for _ in self._pieces(member):
            pass

    def _pieces(self, member: Member) -> Iterator[tuple[int, bytes]]:
        """The data of the present member, and the zeros behind it."""
        for offset, length in member.runs:
            end = offset + length
            while offset < end:
                piece = self._take(end - offset)
                self._left -= len(piece)
                self._done += len(piece)
                self._told(self._done)
                yield offset, piece
                offset += len(piece)
        self._exactly(-member.stored % BLOCK)

    def _next(self) -> Member | None:
        try:
            member = read_member(self._exactly)
        except BadMember as error:
            raise self._damaged(f"it holds {harmless(str(error))}") from error
        self._left = self._whole = member.stored if member else 0
        return member

    def _data(self, member: Member) -> bytes:
        data = self._exactly(member.stored)
        self._exactly(-member.stored % BLOCK)
        self._left = self._whole = 0
        return data

    def _exactly(self, count: int) -> bytes:
        data = bytearray()
        while len(data) < count:
            data += self._take(count - len(data))
        return bytes(data)

    def _take(self, count: int) -> bytes:
        """1 to `count` bytes of the unpacked archive."""
        while not self._waiting:
            if self._frame.ended:
                raise self._damaged(f"it ends too early, in {self._where}")
            self._waiting = memoryview(self._unpack())
        piece, self._waiting = bytes(self._waiting[:count]), self._waiting[count:]
        return piece

    def _finish(self) -> None:
        """Behind the end of the tar archive there are some zeros and the right checksum, and nothing else."""
        self._where = "the checksum at its end"
        left = _TRAILER_MAX
        while True:
            if any(self._waiting) or (left := left - len(self._waiting)) < 0:
                raise self._damaged("something comes behind its end")
            if self._frame.ended:
                break
            self._waiting = memoryview(self._unpack())
        if self.source.read(1):
            raise self._damaged(f"something comes behind its end, which is after {self.source.at - 1} bytes")

    def _unpack(self) -> bytes:
        try:
            return self._frame.block()
        except EOFError as error:
            told = f", and {self._whole - self._left} of {self._whole} bytes of it are there" if self._left else ""
            raise Invalid(
                f"the archive is cut short: it ends after {self.source.at} bytes, in {self._where}{told}", hint=_HINT
            ) from error
        except zstandard.ZstdError as error:
            raise self._damaged(f"after about {self.source.at} bytes, in {self._where} ({error})") from error

    def _damaged(self, what: str) -> Invalid:
        return Invalid(f"the archive is damaged: {what}", hint=_HINT)


def _write(descriptor: int, data: bytes, offset: int) -> None:
    while data:
        count = os.pwrite(descriptor, data, offset)
        data, offset = data[count:], offset + count


class _Frame:
    """A zstd frame, unpacked a block at a time (RFC 8878, 3.1.1): so 128 KiB at most, and its end is seen.

    The streams of python-zstandard end likewise whether a frame is whole or cut short.
    """

    def __init__(self, source: Source) -> None:
        self.ended = False
        self._last = False  # the checksum is next
        self._source = source
        self._unpacker: zstandard.ZstdDecompressionObj | None = None

    def block(self) -> bytes:
        """The content of the next blocks, empty only at the end. Raises `EOFError`, `ZstdError`."""
        if self._unpacker is None:
            self._unpacker = self._begin()
        for _ in range(_EMPTY_MAX):
            content = self._next(self._unpacker)
            if content or self.ended:
                return content
        raise zstandard.ZstdError("nothing but empty blocks")

    def _next(self, unpacker: "zstandard.ZstdDecompressionObj") -> bytes:
        if self._last:
            content = unpacker.decompress(self._exactly(4))  # raises when it is wrong
            self.ended = True
            return content
        head = self._exactly(3)
        number = int.from_bytes(head, "little")
        last, kind, size = number & 1, number >> 1 & 3, number >> 3
        if kind > _COMPRESSED or size > _BLOCK_MAX:
            raise zstandard.ZstdError("an impossible block")
        self._last = bool(last)
        return unpacker.decompress(head + self._exactly(1 if kind == _RLE else size))

    def _begin(self) -> "zstandard.ZstdDecompressionObj":
        head = self._exactly(5)
        if not head.startswith(ZSTD_MAGIC):
            raise zstandard.ZstdError("it is not compressed by zstd")
        head += self._exactly(zstandard.frame_header_size(head + bytes(_HEADER_MAX)) - len(head))
        parameters = zstandard.get_frame_parameters(head)
        if parameters.window_size > _WINDOW_MAX:
            raise zstandard.ZstdError(f"it wants {parameters.window_size} bytes of memory")
        if not parameters.has_checksum or parameters.dict_id:
            raise zstandard.ZstdError("it has no checksum, or needs a dictionary")
        unpacker = zstandard.ZstdDecompressor(max_window_size=_WINDOW_MAX).decompressobj()
        unpacker.decompress(head)
        return unpacker

    def _exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            piece = self._source.read(count - len(data))
            if not piece:
                raise EOFError
            data += piece
        return data
