"""Packs a file or a tree into a tar stream (pax, numeric owners, GNU sparse 1.0), in memory that does not grow with it.

What cannot be read is left out and reported; only the stream's own failure, or a path that is not there, ends it.
"""

import errno
import os
import stat
from collections.abc import Callable, Iterator

from banger.guest.tree.headers import BLOCK, Member, write_header
from banger.guest.tree.report import Progress, Report, TreeError, shown

CHUNK = 65536
DEPTH_MAX = 256  # directories within one another: each is open while its contents are packed
RUNS_MAX = 8192  # runs of data told of one file; what lies behind them is sent whole
UNSIZED_MAX = 1 << 20  # bytes of a file whose size only reading it tells

# Trees the kernel makes up. Files in them have no true size, and reading some of them does things.
_MADE_UP = {
    *(b"autofs", b"binfmt_misc", b"bpf", b"cgroup", b"cgroup2", b"configfs", b"debugfs", b"devpts", b"devtmpfs"),
    *(b"efivarfs", b"fusectl", b"hugetlbfs", b"mqueue", b"proc", b"pstore", b"rpc_pipefs", b"securityfs", b"selinuxfs"),
    *(b"sysfs", b"tracefs"),
}
_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC

Write = Callable[[bytes], object]


def pack(path: bytes, write: Write, *, contents: bool = False, progress: "Progress | None" = None) -> Report:
    """Write the archive of `path` through `write`.

    A link at `path` itself is followed; links below are kept as links. The one top entry is named as the path's last
    part, with `contents` the entries of a directory are rooted at "./". Raises `TreeError`, and what `write` raises.
    """
    report = Report(progress)
    try:
        status = os.stat(path)
    except OSError as error:
        raise TreeError(f"{shown(path)}: {os.strerror(error.errno or 0)}", error.errno or 0) from None
    if contents and not stat.S_ISDIR(status.st_mode):
        raise TreeError(f"{shown(path)}: it is not a directory", errno.ENOTDIR)
    name = b"." if contents else os.path.basename(path.rstrip(b"/"))
    if name in (b"", b"..") or (name == b"." and not contents):
        raise TreeError(f"{shown(path)}: only the contents of this can be copied", errno.EINVAL)
    packer = _Packer(write, report)
    packer.tree(os.path.realpath(path), name, status)
    write(bytes(2 * BLOCK))
    return report


class _Packer:
    def __init__(self, write: Write, report: Report) -> None:
        self._write = write
        self._report = report
        self._links: dict[tuple[int, int], bytes] = {}  # the first name of each file that has several

    def tree(self, path: bytes, name: bytes, status: os.stat_result) -> None:
        """The entry at `path` and everything below it, depth first."""
        open_directories: list[tuple[bytes, int, Iterator[os.DirEntry[bytes]]]] = []
        below = self._entry(path, name, status, 0)
        try:
            if below is not None:
                open_directories.append((name, status.st_dev, below))
            while open_directories:
                name, device, entries = open_directories[-1]
                entry = self._following(name, entries)
                if entry is None:
                    _close(open_directories.pop()[2])
                    continue
                inner = name + b"/" + entry.name
                try:
                    status = entry.stat(follow_symlinks=False)
                except OSError as error:
                    self._skip(inner, error)
                    continue
                if status.st_dev != device and (kind := _made_up(status.st_dev)):
                    self._report.skip(inner, f"a file system that the kernel makes up ({kind})")
                    continue
                below = self._entry(entry.path, inner, status, len(open_directories))
                if below is not None:
                    open_directories.append((inner, status.st_dev, below))
        finally:
            for _, _, entries in open_directories:
                _close(entries)

    def _following(self, name: bytes, entries: "Iterator[os.DirEntry[bytes]]") -> "os.DirEntry[bytes] | None":
        try:
            return next(entries, None)
        except OSError as error:
            self._skip(name, error)
            return None

    def _entry(
        self, path: bytes, name: bytes, status: os.stat_result, depth: int
    ) -> "Iterator[os.DirEntry[bytes]] | None":
        """Pack one entry; for a directory, what it contains."""
        mode = status.st_mode
        if stat.S_ISDIR(mode):
            return self._directory(path, name, status, depth)
        if stat.S_ISREG(mode):
            self._file(path, name, status)
        elif stat.S_ISLNK(mode):
            self._link(path, name, status)
        else:
            self._report.skip(name, _special(mode))
        return None

    def _directory(
        self, path: bytes, name: bytes, status: os.stat_result, depth: int
    ) -> "Iterator[os.DirEntry[bytes]] | None":
        if depth >= DEPTH_MAX:
            self._report.skip(name, f"more than {DEPTH_MAX} directories within one another")
            return None
        self._header(_member(name, "directory", status))
        try:
            return os.scandir(path)
        except OSError as error:
            self._skip(name, error)
            return None

    def _link(self, path: bytes, name: bytes, status: os.stat_result) -> None:
        member = _member(name, "symbolic link", status)
        try:
            member.link = os.readlink(path)
        except OSError as error:
            self._skip(name, error)
            return
        self._header(member)

    def _file(self, path: bytes, name: bytes, status: os.stat_result) -> None:
        try:
            fd = os.open(path, _OPEN)
        except OSError as error:
            self._skip(name, error)
            return
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                self._report.skip(name, "it was replaced while it was copied")
                return
            key = (status.st_dev, status.st_ino)
            if key in self._links:
                member = _member(name, "hard link", status)
                member.link = self._links[key]
                self._header(member)
                return
            self._content(fd, _member(name, "file", status), status)
            if status.st_nlink > 1:
                self._links[key] = name
        finally:
            os.close(fd)

    def _content(self, fd: int, member: Member, status: os.stat_result) -> None:
        """Header and data."""
        member.size = status.st_size
        if status.st_blocks == 0 and member.size <= UNSIZED_MAX:
            # a file that the kernel makes up as it is read says nothing true about its size; others are small
            try:
                data = _all(fd, UNSIZED_MAX)
            except OSError as error:
                self._skip(member.name, error)
                return
            member.size = member.stored = len(data)
            self._header(member)
            self._write(data + bytes(-len(data) % BLOCK))
            self._report.count(size=len(data))
            return
        runs = [(0, member.size)]
        if status.st_blocks * 512 < member.size:
            runs = data_runs(fd, member.size)
            if runs != [(0, member.size)]:
                member.runs = runs
        member.stored = sum(length for _, length in runs)
        self._header(member)
        for offset, length in runs:
            self._run(fd, member.name, offset, length)
        self._write(bytes(-member.stored % BLOCK))
        if os.fstat(fd).st_size > member.size:
            self._report.skip(member.name, "it grew while it was copied: what came later is missing")

    def _run(self, fd: int, name: bytes, offset: int, length: int) -> None:
        """`length` bytes, whatever becomes of the file: its header has promised them."""
        end = offset + length
        why = "it shrank while it was copied: zeros stand for what is missing"
        lost = False
        while offset < end:
            data = b""
            try:
                data = b"" if lost else os.pread(fd, min(CHUNK, end - offset), offset)
            except OSError as error:
                why = f"{os.strerror(error.errno or 0)}: zeros stand for what is missing"
            if not data:
                if not lost:
                    self._report.skip(name, why)
                lost, data = True, bytes(min(CHUNK, end - offset))
            self._write(data)
            offset += len(data)
            self._report.count(size=len(data))

    def _header(self, member: Member) -> None:
        self._write(write_header(member))
        self._report.count(entries=1)

    def _skip(self, name: bytes, error: OSError) -> None:
        self._report.skip(name, os.strerror(error.errno or 0))


def _member(name: bytes, kind: str, status: os.stat_result) -> Member:
    member = Member(name, kind)
    member.mode = stat.S_IMODE(status.st_mode)
    member.uid, member.gid = status.st_uid, status.st_gid
    member.mtime_ns = status.st_mtime_ns
    return member


def data_runs(fd: int, size: int) -> "list[tuple[int, int]]":
    """(offset, length) of each run of data in a file of `size` bytes; a last run of none where it ends in a hole."""
    runs: list[tuple[int, int]] = []
    end = 0
    while end < size:
        try:
            start = os.lseek(fd, end, os.SEEK_DATA)
            if start >= size:
                break
            end = min(size, os.lseek(fd, start, os.SEEK_HOLE)) if len(runs) < RUNS_MAX else size
        except OSError as error:
            if error.errno == errno.ENXIO:  # no data behind this place
                break
            return [(0, size)]  # a file system that does not tell
        runs.append((start, end - start))
    if end < size:
        runs.append((size, 0))
    return runs


def _all(fd: int, limit: int) -> bytes:
    data = b""
    while len(data) < limit and (more := os.read(fd, limit - len(data))):
        data += more
    return data


def _special(mode: int) -> str:
    if stat.S_ISSOCK(mode):
        return "a socket"
    return "a FIFO" if stat.S_ISFIFO(mode) else "a device"


def _made_up(device: int) -> str:
    """The type of the file system with this device number when the kernel makes it up, else empty."""
    wanted = b"%d:%d" % (os.major(device), os.minor(device))
    try:
        with open("/proc/self/mountinfo", "rb") as mounts:
            for line in mounts:
                fields, _, rest = line.partition(b" - ")
                if fields.split(b" ")[2] == wanted and rest.split(b" ")[0] in _MADE_UP:
                    return rest.split(b" ")[0].decode()
    except OSError:
        return ""  # no /proc here: then there is no tree of it to meet either
    return ""


def _close(entries: "Iterator[os.DirEntry[bytes]]") -> None:
    entries.close()  # type: ignore[attr-defined]
