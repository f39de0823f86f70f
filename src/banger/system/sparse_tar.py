"""The headers of tar archives of plain files with holes: POSIX pax, and GNU tar's sparse format 1.0 (its manual,
"Storing Sparse Files"). GNU tar reads what this writes. It reads only what is asked for here, and little at a time.
"""

import tarfile
from collections.abc import Callable, Iterator
from typing import NamedTuple

BLOCK = tarfile.BLOCKSIZE
END = bytes(2 * BLOCK)
RUNS_MAX = 65536
_RECORDS_MAX = 16 * BLOCK
_DIGITS_MAX = 20
_SIZE_MAX = 1 << 62
_SPARSE = "GNU.sparse."

Read = Callable[[int], bytes]  # exactly so many bytes, or an error
Runs = list[tuple[int, int]]


class BadMember(Exception):
    """The archive holds something else than plain files; the message says what."""


class Member(NamedTuple):
    """A file: its size with the holes, and offset and length of each run of data, which is what follows."""

    name: str
    size: int
    runs: Runs

    @property
    def stored(self) -> int:
        return sum(length for _, length in self.runs)


def header(member: Member, modified: int) -> bytes:
    """All that comes before the data. What comes behind it are zeros, up to a multiple of `BLOCK`.

    `modified` are seconds since the epoch.
    """
    info = tarfile.TarInfo(member.name)
    info.size, info.mode, info.mtime = member.stored, 0o644, modified
    if member.runs == [(0, member.size)]:
        return info.tobuf(tarfile.PAX_FORMAT)
    runs = list(member.runs)
    if not runs or sum(runs[-1]) < member.size:
        runs.append((member.size, 0))  # tells GNU tar of the hole at the end
    lines = [str(len(runs)), *(f"{offset}\n{length}" for offset, length in runs), ""]
    table = "\n".join(lines).encode()
    table += bytes(-len(table) % BLOCK)
    info.name = f"GNUSparseFile.0/{member.name}"  # what a tar that knows nothing of this calls it
    info.size += len(table)
    records = {"major": "1", "minor": "0", "name": member.name, "realsize": str(member.size)}
    info.pax_headers = {_SPARSE + key: value for key, value in records.items()}
    return info.tobuf(tarfile.PAX_FORMAT) + table


def read_member(read: Read) -> Member | None:
    """The next member, its data not yet read; None at the archive's end. Raises `BadMember`, and what `read` raises."""
    records: dict[str, str] = {}
    block = read(BLOCK)
    if block == END[:BLOCK]:
        if read(BLOCK) != END[:BLOCK]:
            raise BadMember("a block of zeros, and no second one")
        return None
    info = _info(block)
    if info.type == tarfile.XHDTYPE:
        if not 0 <= info.size <= _RECORDS_MAX:
            raise BadMember("a pax header that is too long")
        records = _records(read(info.size + -info.size % BLOCK)[: info.size])
        info = _info(read(BLOCK))
    name = records.get(f"{_SPARSE}name") or records.get("path") or info.name
    if info.type != tarfile.REGTYPE:
        raise BadMember(f"{name!r}, which is no plain file")
    size = _number(records["size"]) if "size" in records else info.size
    if not 0 <= size <= _SIZE_MAX:
        raise BadMember(f"{name!r} of an impossible size")
    if not any(key.startswith(_SPARSE) for key in records):
        return Member(name, size, [(0, size)])
    return _sparse(read, name, size, records)


def _info(block: bytes) -> tarfile.TarInfo:
    try:
        return tarfile.TarInfo.frombuf(block, "utf-8", "strict")
    except (tarfile.HeaderError, UnicodeDecodeError) as error:
        raise BadMember(f"a damaged header ({error})") from error


def _sparse(read: Read, name: str, stored: int, records: dict[str, str]) -> Member:
    if (records.get(f"{_SPARSE}major"), records.get(f"{_SPARSE}minor")) != ("1", "0"):
        raise BadMember(f"{name!r}, sparse in an old form (--sparse-version=1.0 makes the one that is read)")
    size = _number(records.get(f"{_SPARSE}realsize", ""))
    numbers = _numbers(read)
    count, blocks = next(numbers)
    if count > RUNS_MAX:
        raise BadMember(f"{name!r} in too many pieces")
    runs: Runs = []
    for _ in range(count):
        offset, _ = next(numbers)
        length, blocks = next(numbers)
        runs.append((offset, length))
    member = Member(name, size, runs)
    ends = [0, *(offset + length for offset, length in runs)]
    ordered = all(end <= offset for end, (offset, _) in zip(ends, runs, strict=False))
    if not ordered or ends[-1] > size or member.stored + blocks * BLOCK != stored:
        raise BadMember(f"{name!r}, whose map contradicts its size")
    return member


def _numbers(read: Read) -> Iterator[tuple[int, int]]:
    """Decimal numbers, a line each; and with each, how many blocks have been read."""
    waiting, blocks = b"", 0
    while True:
        line, newline, rest = waiting.partition(b"\n")
        if newline:
            waiting = rest
            yield _number(line.decode("latin-1")), blocks
        elif len(waiting) > _DIGITS_MAX:
            raise BadMember("a sparse file with a malformed map")
        else:
            waiting, blocks = waiting + read(BLOCK), blocks + 1


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= _DIGITS_MAX) or int(text) > _SIZE_MAX:
        raise BadMember("an impossible number")
    return int(text)


def _records(data: bytes) -> dict[str, str]:
    """`LENGTH KEY=VALUE` and a newline each; the length counts itself."""
    records = {}
    while data:
        digits, space, _ = data[: _DIGITS_MAX + 1].partition(b" ")
        length = _number(digits.decode("latin-1")) if space else 0
        key, equals, value = data[len(digits) + 1 : length - 1].partition(b"=")
        if not len(digits) + 2 < length <= len(data) or data[length - 1 : length] != b"\n" or not equals:
            raise BadMember("a malformed pax header")
        records[key.decode("latin-1")] = value.decode("utf-8", "replace")
        data = data[length:]
    return records
