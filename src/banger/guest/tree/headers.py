"""Headers of a tar archive: members as this package writes them, and the fields it reads. POSIX.1-2008, pax; GNU tar
manual, "Storing Sparse Files".

tarfile makes and reads single header blocks here. Its streams are not used: they hold every member in memory, cannot
write sparse files, and take whatever sizes a hostile archive names.
"""

import tarfile

from banger.guest.tree.report import TreeError

BLOCK = 512
SIZE_MAX = 1 << 62
ID_MAX = 0xFFFFFFFE  # the last user or group number: one more means "leave it"
NANO = 1_000_000_000
_TIME_MAX = 1 << 36  # seconds; file systems end earlier
_SPARSE_FOLDER = b"GNUSparseFile.0/"


class Member:
    """One entry of an archive.

    `kind` is one of `KINDS`' values, `size` a file's with its holes, `stored` its bytes in the stream, `runs` the
    (offset, length) of each run of data of a sparse file. A time of None is left to be what it is.
    """

    __slots__ = ("gid", "kind", "link", "mode", "mtime_ns", "name", "runs", "size", "stored", "uid")

    def __init__(self, name: bytes, kind: str) -> None:
        self.name = name
        self.kind = kind
        self.mode = 0o755 if kind == "directory" else 0o644
        self.uid = 0
        self.gid = 0
        self.mtime_ns: int | None = None
        self.link = b""
        self.size = 0
        self.stored = 0
        self.runs: list[tuple[int, int]] | None = None


KINDS = {
    tarfile.REGTYPE: "file",
    tarfile.AREGTYPE: "file",
    tarfile.CONTTYPE: "file",
    tarfile.GNUTYPE_SPARSE: "file",
    tarfile.DIRTYPE: "directory",
    tarfile.SYMTYPE: "symbolic link",
    tarfile.LNKTYPE: "hard link",
    tarfile.CHRTYPE: "device",
    tarfile.BLKTYPE: "device",
    tarfile.FIFOTYPE: "FIFO",
}
_TYPES = {
    "file": tarfile.REGTYPE,
    "directory": tarfile.DIRTYPE,
    "symbolic link": tarfile.SYMTYPE,
    "hard link": tarfile.LNKTYPE,
}


def write_header(member: Member) -> bytes:
    """The blocks before a member's data; with `runs` the map that begins the data of a sparse file is among them."""
    info = tarfile.TarInfo(text(member.name))
    info.type = _TYPES[member.kind]
    info.linkname = text(member.link)
    info.mode, info.uid, info.gid = member.mode, member.uid, member.gid
    extra: dict[str, str] = {}
    moment = member.mtime_ns or 0
    info.mtime = moment // NANO
    if moment % NANO:
        extra["mtime"] = _seconds(moment)
    table = b""
    if member.runs is not None:
        table = _sparse_map(member.runs)
        # where tarfile would write the placeholder's name as a pax record, it would win over the true one
        plain = member.name if member.name.isascii() and len(member.name) < 80 else b"file"
        info.name = text(_SPARSE_FOLDER + plain)
        extra["GNU.sparse.major"], extra["GNU.sparse.minor"] = "1", "0"
        extra["GNU.sparse.name"] = text(member.name)
        extra["GNU.sparse.realsize"] = str(member.size)
    info.pax_headers = extra
    info.size = len(table) + member.stored
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape") + table


def _sparse_map(runs: "list[tuple[int, int]]") -> bytes:
    lines = [str(len(runs)), *(f"{offset}\n{length}" for offset, length in runs), ""]
    data = "\n".join(lines).encode()
    return data + bytes(-len(data) % BLOCK)


def _seconds(nanoseconds: int) -> str:
    whole, part = divmod(abs(nanoseconds), NANO)
    return f"{'-' if nanoseconds < 0 else ''}{whole}.{part:09d}"


def text(name: bytes) -> str:
    """Bytes as tarfile wants them; every byte survives."""
    return name.decode("utf-8", "surrogateescape")


def read_block(block: bytes) -> tarfile.TarInfo:
    """One header block. Raises `TreeError`."""
    try:
        info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except (tarfile.HeaderError, ValueError, OverflowError):
        raise TreeError("this is not a tar archive, or it is damaged") from None
    if not 0 <= info.size < SIZE_MAX:
        raise TreeError("the archive names an impossible size")
    return info


def read_records(data: bytes) -> "dict[bytes, bytes]":
    """The records of a pax header, each `LENGTH KEY=VALUE\\n`. Raises `TreeError`."""
    records: dict[bytes, bytes] = {}
    start = 0
    while start < len(data):
        space = data.find(b" ", start, start + 12)
        digits = data[start:space]
        end = start + int(digits) if space > start and digits.isdigit() else -1
        key, equals, value = data[space + 1 : end - 1].partition(b"=")
        if not space < end <= len(data) or data[end - 1 : end] != b"\n" or not equals:
            raise TreeError("the archive holds a malformed pax header")
        records[key] = value
        start = end
    return records


def member_of(info: tarfile.TarInfo, records: "dict[bytes, bytes]") -> Member:
    """The member that a header block and the records before it describe, without its sparse map. Raises `TreeError`."""
    path = records.get(b"GNU.sparse.name") or records.get(b"path") or info.name.encode("utf-8", "surrogateescape")
    member = Member(path, KINDS.get(info.type, "unknown entry"))
    member.link = records.get(b"linkpath") or info.linkname.encode("utf-8", "surrogateescape")
    member.mode = info.mode & 0o7777
    member.uid = _number(records, b"uid", info.uid, ID_MAX)
    member.gid = _number(records, b"gid", info.gid, ID_MAX)
    member.mtime_ns = _nanoseconds(records[b"mtime"]) if b"mtime" in records else _clamp(int(info.mtime)) * NANO
    member.size = _number(records, b"size", info.size, SIZE_MAX)
    if member.kind in ("file", "unknown entry"):  # for the others the field may be filled, and no data follows
        member.stored = member.size
    return member


def real_size(records: "dict[bytes, bytes]") -> int:
    """The size of a sparse file with all its holes. Raises `TreeError`."""
    return _number(records, b"GNU.sparse.realsize", -1, SIZE_MAX)


def _number(records: "dict[bytes, bytes]", key: bytes, otherwise: int, limit: int) -> int:
    value = records.get(key)
    number = otherwise
    if value is not None:
        number = int(value) if len(value) < 20 and value.isdigit() else -1
    if not 0 <= number <= limit:
        raise TreeError(f"the archive names an impossible {key.decode()}")
    return number


def _nanoseconds(value: bytes) -> int:
    digits = value[1:] if value.startswith(b"-") else value
    whole, _, part = digits.partition(b".")
    if not whole.isdigit() or len(whole) > 20 or (part and not part.isdigit()):
        raise TreeError("the archive names an impossible time")
    moment = _clamp(int(whole)) * NANO + int(part[:9].ljust(9, b"0"))
    return -moment if digits != value else moment


def _clamp(seconds: int) -> int:
    return max(-_TIME_MAX, min(seconds, _TIME_MAX))
