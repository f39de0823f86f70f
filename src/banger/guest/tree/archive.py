"""Reads a tar stream member by member, with a bound on everything that a hostile archive could make large."""

from collections.abc import Callable, Iterator

from banger.guest.tree.headers import (
    BLOCK,
    GLOBAL,
    LONG_LINK,
    LONG_NAME,
    OLD_SPARSE,
    PAX,
    SIZE_MAX,
    Header,
    Member,
    member_of,
    octal,
    read_records,
    real_size,
)
from banger.guest.tree.report import TreeError

Read = Callable[[int], "bytes | memoryview"]
CHUNK = 65536
RUNS_MAX = 65536  # runs of data in one sparse file
_EXTENSION_MAX = 1 << 20  # bytes of a pax header or a long name
_EXTENSIONS_MAX = 16  # of them before one member
_TRAILER_MAX = 1 << 20  # bytes after the end-of-archive blocks: tar pads to its record size
_ZEROS = bytes(BLOCK)
_NUMBER_MAX = 20  # digits of a number in a sparse map

_LONG = {LONG_NAME: b"path", LONG_LINK: b"linkpath"}
_OLDER_SPARSE = (b"GNU.sparse.map", b"GNU.sparse.numblocks", b"GNU.sparse.offset")


class Reader:
    """`read(n)` gives 1 to n bytes, good until the next call, or none at the stream's end. All raises `TreeError`."""

    def __init__(self, read: Read) -> None:
        self._read = read
        self._left = 0  # bytes of the present member, its padding included

    def next(self) -> "Member | None":
        """The next member, whatever has been read of the last one; None behind the last, at the stream's end."""
        self._skip(self._left)
        records: dict[bytes, bytes] = {}
        for _ in range(_EXTENSIONS_MAX):
            block = self._exactly(BLOCK)
            if block == _ZEROS:
                self._finish()
                return None
            header = Header(block)
            if header.type == PAX:
                records.update(read_records(self._extension(header.size)))
            elif header.type in _LONG:
                records[_LONG[header.type]] = self._extension(header.size).rstrip(b"\0")
            elif header.type == GLOBAL:
                self._skip(_padded(header.size))  # for all that follows: a comment, in practice
            else:
                return self._member(header, records)
        raise TreeError("the archive holds too many headers before one entry")

    def chunks(self, member: Member) -> "Iterator[tuple[int, bytes | memoryview]]":
        """The data of the present member: (offset in the file, bytes that are good until the next chunk)."""
        for offset, length in [(0, member.size)] if member.runs is None else member.runs:
            end = offset + length
            while offset < end:
                data = self._some(min(CHUNK, end - offset))
                self._left -= len(data)
                yield offset, data
                offset += len(data)

    def _member(self, header: Header, records: "dict[bytes, bytes]") -> Member:
        member = member_of(header, records)
        self._left = _padded(member.stored)
        if member.kind != "file":
            return member
        if header.type == OLD_SPARSE:
            self._old_map(member, header.block)
        elif records.get(b"GNU.sparse.major") == b"1" and records.get(b"GNU.sparse.minor") == b"0":
            member.size = real_size(records)
            member.runs = self._map(member)
        elif any(key in records for key in _OLDER_SPARSE):
            raise TreeError("the archive holds a sparse file in an old form; pack it with --sparse-version=1.0")
        if member.runs is not None:
            _check_runs(member)
        return member

    def _map(self, member: Member) -> "list[tuple[int, int]]":
        """The map before a sparse file's data, taken off what the member stores."""
        numbers = self._numbers(member)
        count = next(numbers)
        if count > RUNS_MAX:
            raise TreeError("the archive holds a sparse file in too many pieces")
        return [(next(numbers), next(numbers)) for _ in range(count)]

    def _numbers(self, member: Member) -> Iterator[int]:
        """Decimal numbers, a line each, from as many blocks as they take."""
        waiting = b""
        while True:
            line, newline, rest = waiting.partition(b"\n")
            if newline:
                waiting = rest
                if not line.isdigit() or len(line) > _NUMBER_MAX:
                    break
                yield int(line)
                continue
            if len(waiting) > _NUMBER_MAX or member.stored < BLOCK:
                break
            waiting += self._exactly(BLOCK)
            member.stored -= BLOCK
            self._left -= BLOCK
        raise TreeError("the archive holds a sparse file with a malformed map")

    def _old_map(self, member: Member, block: bytes) -> None:
        """The map of GNU tar's own format, which is in the header and in blocks of its own before the data."""
        places, size = block[386:482], octal(block[483:495])
        extended = block[482]
        runs = _structures(places)
        while extended:
            block = self._exactly(BLOCK)
            runs += _structures(block[:504])
            extended = block[504]
            if len(runs) > RUNS_MAX:
                raise TreeError("the archive holds a sparse file in too many pieces")
        member.size, member.runs = size, runs

    def _extension(self, size: int) -> bytes:
        if size > _EXTENSION_MAX:
            raise TreeError("the archive holds a header that is too long")
        return self._exactly(_padded(size))[:size]

    def _finish(self) -> None:
        """The second block of zeros, and padding."""
        if self._exactly(BLOCK) != _ZEROS:
            raise TreeError("the archive is damaged")
        left = _TRAILER_MAX
        while data := self._read(CHUNK):
            left -= len(data)
            if left < 0:
                raise TreeError("the archive does not end where it says")

    def _skip(self, count: int) -> None:
        while count:
            count -= len(self._some(min(count, CHUNK)))
        self._left = 0

    def _exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            data += bytes(self._some(count - len(data)))
        return data

    def _some(self, count: int) -> "bytes | memoryview":
        data = self._read(count)
        if not data:
            raise TreeError("the archive ends too early")
        return data


def _padded(size: int) -> int:
    return size + -size % BLOCK


def _structures(data: bytes) -> "list[tuple[int, int]]":
    """Offsets and lengths, 12 bytes each; the first empty place ends them."""
    found = []
    for start in range(0, len(data) - 23, 24):
        if not data[start]:
            break
        found.append((octal(data[start : start + 12]), octal(data[start + 12 : start + 24])))
    return found


def _check_runs(member: Member) -> None:
    """The runs lie in order within the file, and are all of the data that follows."""
    end = total = 0
    for offset, length in member.runs or ():
        if not (0 <= end <= offset <= SIZE_MAX and length >= 0):
            break
        end = offset + length
        total += length
    else:
        if end <= member.size < SIZE_MAX and total == member.stored:
            return
    raise TreeError("the archive holds a sparse file whose map contradicts its size")
