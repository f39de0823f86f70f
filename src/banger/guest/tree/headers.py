"""The header blocks of tar archives: POSIX.1-2008 (ustar, pax) and the GNU tar manual, "Basic Tar Format" and "Storing
Sparse Files".

The standard library's tarfile is not used: its streams hold every member in memory, write no sparse files and take
whatever sizes a hostile archive names; and loading it costs an emulated guest 0.5 s and its agent 2 MiB.
"""

from banger.guest.tree.report import TreeError

BLOCK = 512
SIZE_MAX = 1 << 62
ID_MAX = 0xFFFFFFFE  # the last user or group number: one more means "leave it"
NANO = 1_000_000_000
PAX, GLOBAL, LONG_NAME, LONG_LINK, OLD_SPARSE = b"x", b"g", b"L", b"K", b"S"
KINDS = {
    b"0": "file",
    b"\0": "file",
    b"7": "file",
    OLD_SPARSE: "file",
    b"5": "directory",
    b"2": "symbolic link",
    b"1": "hard link",
    b"3": "device",
    b"4": "device",
    b"6": "FIFO",
}
_TYPES = {"file": b"0", "directory": b"5", "symbolic link": b"2", "hard link": b"1"}
_TIME_MAX = 1 << 36  # seconds; file systems end earlier
_SMALL_MAX, _LARGE_MAX = 0o7777777, 0o77777777777  # what 7 and 11 octal digits hold
_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")  # gzip, bzip2, xz, zstd
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


def write_header(member: Member) -> bytes:
    """The blocks before a member's data; with `runs` the map that begins the data of a sparse file is among them."""
    records: dict[bytes, bytes] = {}
    name = member.name + b"/" if member.kind == "directory" else member.name
    table = b""
    if member.runs is not None:
        table = _sparse_map(member.runs)
        records[b"GNU.sparse.major"], records[b"GNU.sparse.minor"] = b"1", b"0"
        records[b"GNU.sparse.name"] = name
        records[b"GNU.sparse.realsize"] = b"%d" % member.size
        # a placeholder that never needs a record of its own, which some readers would take for the true name
        name = _SPARSE_FOLDER + (name if name.isascii() and len(name) < 80 else b"file")
    for key, value in ((b"path", name), (b"linkpath", member.link)):
        if len(value) > 100 or not value.isascii():
            records[key] = value
    numbers = [member.uid, member.gid, len(table) + member.stored]
    for index, (key, limit) in enumerate(((b"uid", _SMALL_MAX), (b"gid", _SMALL_MAX), (b"size", _LARGE_MAX))):
        if numbers[index] > limit:
            records[key] = b"%d" % numbers[index]
            numbers[index] = 0
    seconds, rest = divmod(member.mtime_ns or 0, NANO)
    if rest or not 0 <= seconds <= _LARGE_MAX:
        records[b"mtime"] = _decimal(member.mtime_ns or 0)
        seconds = max(0, min(seconds, _LARGE_MAX))
    block = _block(name, member.mode, numbers, seconds, _TYPES[member.kind], member.link)
    return _pax(records) + block + table


def _block(name: bytes, mode: int, numbers: "list[int]", seconds: int, kind: bytes, link: bytes) -> bytes:
    uid, gid, size = numbers
    head = b"%s%07o\0%07o\0%07o\0%011o\0%011o\0" % (name[:100].ljust(100, b"\0"), mode, uid, gid, size, seconds)
    tail = kind + link[:100].ljust(100, b"\0") + b"ustar\x0000"
    total = sum(head) + sum(tail) + 8 * 32  # the sum counts its own place as spaces
    return (head + b"%06o\0 " % total + tail).ljust(BLOCK, b"\0")


def _pax(records: "dict[bytes, bytes]") -> bytes:
    if not records:
        return b""
    try:
        for value in records.values():
            value.decode()
    except UnicodeDecodeError:  # names are UTF-8 in this header unless it says otherwise, first
        records = {b"hdrcharset": b"BINARY", **records}
    data = b"".join(_record(key, value) for key, value in records.items())
    return _block(b"././@PaxHeader", 0o644, [0, 0, len(data)], 0, PAX, b"") + data + bytes(-len(data) % BLOCK)


def _record(key: bytes, value: bytes) -> bytes:
    """`LENGTH KEY=VALUE\\n`, whose length counts its own digits."""
    bare = len(key) + len(value) + 3
    length = bare + len(str(bare))
    length = bare + len(str(length))
    return b"%d %s=%s\n" % (length, key, value)


def _sparse_map(runs: "list[tuple[int, int]]") -> bytes:
    lines = [str(len(runs)), *(f"{offset}\n{length}" for offset, length in runs), ""]
    data = "\n".join(lines).encode()
    return data + bytes(-len(data) % BLOCK)


def _decimal(nanoseconds: int) -> bytes:
    whole, part = divmod(abs(nanoseconds), NANO)
    return b"%s%d.%09d" % (b"-" if nanoseconds < 0 else b"", whole, part)


class Header:
    """The fields of one header block that matter before its meaning is known."""

    __slots__ = ("block", "size", "type")

    def __init__(self, block: bytes) -> None:
        """Raises `TreeError` unless the sum is right and the size possible."""
        self.block = block
        try:
            wanted = octal(block[148:156])
        except TreeError:
            wanted = -1
        if wanted != sum(block) - sum(block[148:156]) + 8 * 32:
            kind = "compressed: decompress it first" if block.startswith(_COMPRESSED) else "damaged, or none"
            raise TreeError(f"the tar archive is {kind}")
        self.type = block[156:157]
        self.size = _bounded(octal(block[124:136]), b"size", SIZE_MAX)

    @property
    def name(self) -> bytes:
        name = _text(self.block[:100])
        prefix = _text(self.block[345:500]) if self.block[257:263] == b"ustar\0" else b""  # not in GNU tar's own format
        return prefix + b"/" + name if prefix else name


def _text(field: bytes) -> bytes:
    return field.partition(b"\0")[0]


def octal(field: bytes) -> int:
    """A number in a header block: octal digits, or big-endian behind a byte of 0x80 or 0xff. Raises `TreeError`."""
    if field[0] in (0x80, 0xFF):
        return int.from_bytes(field[1:], "big", signed=field[0] == 0xFF)
    digits = _text(field).strip(b" ")
    if not digits:
        return 0
    if not digits.isdigit() or digits.strip(b"01234567"):
        raise TreeError("the archive holds a malformed number")
    return int(digits, 8)


def read_records(data: bytes) -> "dict[bytes, bytes]":
    """The records of a pax header. Raises `TreeError`."""
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


def member_of(header: Header, records: "dict[bytes, bytes]") -> Member:
    """The member that a header block and the records before it describe, without its sparse map. Raises `TreeError`."""
    block = header.block
    name = records.get(b"GNU.sparse.name") or records.get(b"path") or header.name
    kind = KINDS.get(header.type, "unknown entry")
    if header.type == b"\0" and name.endswith(b"/"):  # as archives said it before there was a type for it
        kind = "directory"
    member = Member(name, kind)
    member.link = records.get(b"linkpath") or _text(block[157:257])
    member.mode = octal(block[100:108]) & 0o7777
    member.uid = _number(records, b"uid", block[108:116], ID_MAX)
    member.gid = _number(records, b"gid", block[116:124], ID_MAX)
    member.mtime_ns = _nanoseconds(records[b"mtime"]) if b"mtime" in records else _clamp(octal(block[136:148])) * NANO
    member.size = _number(records, b"size", block[124:136], SIZE_MAX)
    if kind in ("file", "unknown entry"):  # for the others the field may be filled, and no data follows
        member.stored = member.size
    return member


def real_size(records: "dict[bytes, bytes]") -> int:
    """The size of a sparse file with all its holes. Raises `TreeError`."""
    return _number(records, b"GNU.sparse.realsize", b"\xff", SIZE_MAX)


def _number(records: "dict[bytes, bytes]", key: bytes, field: bytes, limit: int) -> int:
    """From a record, else from a field of the block."""
    value = records.get(key)
    if value is None:
        return _bounded(octal(field), key, limit)
    return _bounded(int(value) if len(value) < 20 and value.isdigit() else -1, key, limit)


def _bounded(number: int, key: bytes, limit: int) -> int:
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
