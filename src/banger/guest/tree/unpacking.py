"""Unpacks a tar stream below a directory, and nowhere else, whatever the archive says.

Names are split and checked, each directory on the way is opened from the one above it, and no symbolic link is
followed, whether the archive made it or it was there before. Files appear under their names when they are whole.
"""

import errno
import os

from banger.guest.tree.archive import Read, Reader
from banger.guest.tree.headers import Member
from banger.guest.tree.report import Progress, Report, TreeError, shown

NAME_MAX = 255  # bytes of one part of a path
PATH_MAX = 4096  # bytes of a path in the archive, or of a link's target
DEPTH_MAX = 256  # directories within one another

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class Owner:
    """Who shall own what is unpacked. `KEEP`: whom the archive names, by number, with set-user-id and set-group-id."""

    __slots__ = ("gid", "keep", "uid")

    def __init__(self, uid: int, gid: int, *, keep: bool = False) -> None:
        self.uid = uid
        self.gid = gid
        self.keep = keep

    def of(self, member: Member) -> "tuple[int, int]":
        """Numbers for chown(2); -1 leaves one as it is."""
        return (member.uid, member.gid) if self.keep else (self.uid, self.gid)

    def mode(self, member: Member) -> int:
        return member.mode & (0o7777 if self.keep else 0o1777)


UNPACKER = Owner(-1, -1)  # whoever unpacks
KEEP = Owner(-1, -1, keep=True)


def unpack(
    read: Read,
    path: bytes,
    *,
    contents: bool = False,
    name: "bytes | None" = None,
    owner: Owner = UNPACKER,
    progress: "Progress | None" = None,
) -> Report:
    """Unpack the archive that `read` gives (as `Reader` takes it).

    With `contents` into the directory `path`, which is made with its parents. Else the archive has one top entry: it
    lands in the directory `path` under `name`, by default its own; where `path` is no directory, it becomes `path`, in
    a directory that must exist. Nothing is made before the first entry has come. Raises `TreeError`, and what `read`
    raises, which must not be an OSError; what was whole by then stays.
    """
    report = Report(progress)
    reader = Reader(read)
    member = reader.next()
    if member is None:
        raise TreeError("the archive is empty")
    try:
        directory, made, top = _open_target(path, contents, name, member, owner)
    except OSError as error:
        where = shown(error.filename if isinstance(error.filename, bytes) else path)
        raise TreeError(f"{where}: {os.strerror(error.errno or 0)}", error.errno or 0) from None
    unpacker = _Unpacker(directory, reader, report, owner, made=made, single=not contents, top=top)
    try:
        while member is not None:
            unpacker.take(member)
            member = reader.next()
    finally:
        unpacker.close()
    return report


def _open_target(
    path: bytes, contents: bool, name: "bytes | None", member: Member, owner: Owner
) -> "tuple[int, bool, bytes | None]":
    """(a descriptor of the directory to unpack in, whether it was made, the top entry's new name)."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC  # links on the way that the person named are followed
    if contents:
        made = _make_directories(path, owner)
        return os.open(path or b".", flags), made, None
    if os.path.isdir(path or b"."):
        return os.open(path or b".", flags), False, name
    parent, last = os.path.split(path.rstrip(b"/"))
    if path.endswith(b"/") and member.kind != "directory":
        raise NotADirectoryError(errno.ENOTDIR, "", path) if os.path.lexists(path.rstrip(b"/")) else _missing(path)
    try:
        return os.open(parent or b".", flags), False, last
    except FileNotFoundError:
        raise _missing(parent) from None


def _missing(path: bytes) -> FileNotFoundError:
    return FileNotFoundError(errno.ENOENT, "", path)


def _make_directories(path: bytes, owner: Owner) -> bool:
    """Make a directory with its parents; whether it had to be made."""
    missing = []
    while path and not os.path.isdir(path):
        missing.append(path)
        path = os.path.dirname(path.rstrip(b"/"))
    for directory in reversed(missing):
        os.mkdir(directory, 0o755)
        if not owner.keep:
            os.chown(directory, owner.uid, owner.gid)
    return bool(missing)


def split(name: bytes) -> "tuple[bytes, ...]":
    """The parts of a path in an archive, none for the top itself. Raises `TreeError` for one that leads elsewhere."""
    parts = tuple(part for part in name.split(b"/") if part not in (b"", b"."))
    if name.startswith(b"/") or b".." in parts:
        raise TreeError(f"{shown(name)}: the archive names a place outside the target")
    if len(name) > PATH_MAX or len(parts) > DEPTH_MAX or any(len(part) > NAME_MAX for part in parts):
        raise TreeError(f"{shown(name)}: the name is too long", errno.ENAMETOOLONG)
    if not name or b"\0" in name:
        raise TreeError("the archive holds an entry without a proper name")
    return parts


class _Unpacker:
    def __init__(
        self,
        directory: int,
        reader: Reader,
        report: Report,
        owner: Owner,
        *,
        made: bool,
        single: bool,
        top: "bytes | None",
    ) -> None:
        self._root = directory
        self._reader = reader
        self._report = report
        self._owner = owner
        self._single = single
        self._first: bytes | None = None  # the top entry's name in the archive
        self._top = top
        self._way: list[tuple[bytes, int]] = []  # the directory last worked in: its parts, each with a descriptor
        # directories of ours by their parts, with what they shall become; those that were there stay as they are
        self._made: dict[tuple[bytes, ...], Member] = {(): Member(b".", "directory")} if made else {}
        self._files: set[int] = set()  # hashes of the names unpacked: what a hard link may lead to

    def take(self, member: Member) -> None:
        """Unpack one entry."""
        try:
            self._take(member, self._place(member.name))
        except OSError as error:
            raise TreeError(f"{shown(member.name)}: {os.strerror(error.errno or 0)}", error.errno or 0) from error

    def _place(self, name: bytes) -> "tuple[bytes, ...]":
        """Where an entry goes: its parts, the top one renamed."""
        parts = split(name)
        if not self._single:
            return parts
        if self._first is None and parts:
            self._first = parts[0]
        if not parts or parts[0] != self._first:
            raise TreeError(f"{shown(name)}: the archive holds more than the one entry that was asked for")
        return (self._top or parts[0], *parts[1:])

    def _take(self, member: Member, parts: "tuple[bytes, ...]") -> None:
        if member.kind == "directory":
            self._enter(parts)
            if parts in self._made:
                self._made[parts] = member
        elif not parts:
            raise TreeError("the archive's top is not a directory")
        elif member.kind == "file":
            self._file(member, parts)
        elif member.kind == "symbolic link":
            self._symbolic_link(member, parts)
        elif member.kind == "hard link":
            self._hard_link(member, parts)
        else:
            self._report.skip(member.name, f"a {member.kind}" if member.kind != "unknown entry" else "it is unknown")
            return
        self._report.count(entries=1)

    def _enter(self, parts: "tuple[bytes, ...]") -> int:
        """A descriptor of a directory below the target, made where missing; good until the next call."""
        common = 0
        while common < min(len(parts), len(self._way)) and self._way[common][0] == parts[common]:
            common += 1
        while len(self._way) > common:
            os.close(self._way.pop()[1])
        for depth in range(common, len(parts)):
            above = self._way[-1][1] if self._way else self._root
            self._way.append((parts[depth], self._step(above, parts[: depth + 1])))
        return self._way[-1][1] if self._way else self._root

    def _step(self, above: int, parts: "tuple[bytes, ...]") -> int:
        try:
            return os.open(parts[-1], _DIRECTORY, dir_fd=above)
        except FileNotFoundError:
            os.mkdir(parts[-1], 0o700, dir_fd=above)
            self._made[parts] = Member(b"/".join(parts), "directory")
            return os.open(parts[-1], _DIRECTORY, dir_fd=above)
        except OSError as error:
            if error.errno not in (errno.ENOTDIR, errno.ELOOP):
                raise
            text = f"{shown(b'/'.join(parts))}: something that is not a directory is in the way"
            raise TreeError(text, errno.ENOTDIR) from None

    def _file(self, member: Member, parts: "tuple[bytes, ...]") -> None:
        directory = self._enter(parts[:-1])
        temporary = _temporary()
        try:
            fd = os.open(temporary, _NEW_FILE, 0o600, dir_fd=directory)
            try:
                self._content(member, fd)
                self._dress(member, fd)
            finally:
                os.close(fd)
            _rename(temporary, parts[-1], directory)
        finally:
            _remove(temporary, directory)
        self._files.add(hash(parts))

    def _content(self, member: Member, fd: int) -> None:
        for offset, data in self._reader.chunks(member):
            view = memoryview(data)
            while view:
                written = os.pwrite(fd, view, offset)
                view, offset = view[written:], offset + written
            self._report.count(size=len(data))
        if member.runs is not None:
            os.ftruncate(fd, member.size)

    def _dress(self, member: Member, fd: int) -> None:
        """Owner, mode and times, in this order: a change of owner takes bits of the mode away."""
        uid, gid = self._owner.of(member)
        if (uid, gid) != (-1, -1):
            os.chown(fd, uid, gid)
        os.chmod(fd, self._owner.mode(member))
        if member.mtime_ns is not None:
            os.utime(fd, ns=(member.mtime_ns, member.mtime_ns))

    def _symbolic_link(self, member: Member, parts: "tuple[bytes, ...]") -> None:
        """The target is kept as it is written; nothing here follows it."""
        if not 0 < len(member.link) < PATH_MAX or b"\0" in member.link:
            raise TreeError(f"{shown(member.name)}: the archive holds a link without a proper target")
        directory = self._enter(parts[:-1])
        temporary = _temporary()
        try:
            os.symlink(member.link, temporary, dir_fd=directory)
            uid, gid = self._owner.of(member)
            if (uid, gid) != (-1, -1):
                os.chown(temporary, uid, gid, dir_fd=directory, follow_symlinks=False)
            if member.mtime_ns is not None:
                moment = (member.mtime_ns, member.mtime_ns)
                os.utime(temporary, ns=moment, dir_fd=directory, follow_symlinks=False)
            _rename(temporary, parts[-1], directory)
        finally:
            _remove(temporary, directory)
        self._files.add(hash(parts))

    def _hard_link(self, member: Member, parts: "tuple[bytes, ...]") -> None:
        source = self._place(member.link)
        if not source or hash(source) not in self._files:
            raise TreeError(f"{shown(member.name)}: a link to {shown(member.link)}, which was not copied")
        above = os.dup(self._enter(source[:-1]))
        temporary = _temporary()
        try:
            directory = self._enter(parts[:-1])
            try:
                os.link(source[-1], temporary, src_dir_fd=above, dst_dir_fd=directory, follow_symlinks=False)
                _rename(temporary, parts[-1], directory)
            finally:
                _remove(temporary, directory)
        finally:
            os.close(above)
        self._files.add(hash(parts))

    def close(self) -> None:
        """Give the directories that were made their owners, modes and times, the innermost first."""
        try:
            for parts, member in reversed(list(self._made.items())):
                self._settle(parts, member)
        finally:
            for _, descriptor in self._way:
                os.close(descriptor)
            os.close(self._root)

    def _settle(self, parts: "tuple[bytes, ...]", member: Member) -> None:
        try:
            self._dress(member, self._enter(parts))
        except OSError as error:
            self._report.skip(member.name, f"owner, mode or times: {os.strerror(error.errno or 0)}")
        except TreeError as error:
            self._report.skip(member.name, error.text)  # somebody else took it away meanwhile


def _temporary() -> bytes:
    return b".banger-cp-" + os.urandom(8).hex().encode()


def _rename(temporary: bytes, name: bytes, directory: int) -> None:
    try:
        os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
    except IsADirectoryError:
        raise TreeError(f"{shown(name)}: a directory is in the way", errno.EISDIR) from None


def _remove(temporary: bytes, directory: int) -> None:
    """Nothing to do in the common case; two names of one file do not replace each other, and leave it."""
    try:
        os.unlink(temporary, dir_fd=directory)
    except OSError:
        return
