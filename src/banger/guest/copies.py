"""Files and trees of the host for a guest: what they hold, as a digest, and as a tar stream.

Names, modes, times and links are kept; everything is root's in the guest. A link at the top is followed, those below
stay links.
"""

import hashlib
import os
import stat
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from banger.model.errors import Invalid

Told = Callable[[int], None]  # hears how many bytes were read after each piece; what it raises ends the work

FILES_MAX = 1_000_000
_PIECE = 1024 * 1024


class Tree(NamedTuple):
    """What a source holds: a digest in hex over names, modes and contents, and how many bytes of content."""

    digest: str
    bytes: int


class _Entry(NamedTuple):
    path: Path
    name: str
    status: os.stat_result


def check_source(source: Path) -> None:
    """Raise `Invalid` unless there is a file or directory that can be read."""
    try:
        status = source.stat()
    except OSError as error:
        raise _unusable(source, error.strerror or "it cannot be read") from error
    if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
        raise _unusable(source, "it is neither a file nor a directory")
    if not os.access(source, os.R_OK | (os.X_OK if stat.S_ISDIR(status.st_mode) else 0)):
        raise _unusable(source, "it must not be read")


def digest_tree(source: Path, told: Told = lambda _: None) -> Tree:
    """Read everything once. Raises `Invalid` for what is missing, cannot be read, or is no file, directory or link."""
    return _read(source, None, told=told)


def write_tree(source: Path, name: str, out: BinaryIO, told: Told = lambda _: None) -> Tree:
    """The same, and write it as a tar archive: a file under `name`, a directory's content below `./`.

    Raises also what writing raises.
    """
    with tarfile.open(fileobj=out, mode="w|", format=tarfile.PAX_FORMAT) as archive:
        return _read(source, archive, name, told)


def write_files(files: dict[str, tuple[bytes, int]], links: dict[str, str], out: BinaryIO) -> None:
    """Write a tar archive of contents and modes by path, and of links' targets by path."""
    import io

    with tarfile.open(fileobj=out, mode="w|", format=tarfile.PAX_FORMAT) as archive:
        for path, (content, mode) in files.items():
            member = tarfile.TarInfo(path)
            member.size, member.mode = len(content), mode
            archive.addfile(member, io.BytesIO(content))
        for path, target in links.items():
            member = tarfile.TarInfo(path)
            member.type, member.linkname, member.mode = tarfile.SYMTYPE, target, 0o777
            archive.addfile(member)


def _read(source: Path, archive: tarfile.TarFile | None, name: str = "", told: Told = lambda _: None) -> Tree:
    digest, total = hashlib.sha256(), 0
    try:
        for entry in _entries(source, name):
            mode = entry.status.st_mode
            if entry.name == ".":
                continue  # the destination is what it is
            target = os.readlink(entry.path) if stat.S_ISLNK(mode) else ""  # noqa: PTH115 - a Path is not the same text
            # a file's own name is the destination's affair
            called = "" if stat.S_ISREG(mode) and entry.path == source else entry.name
            digest.update(f"{called}\0{mode:o}\0{entry.status.st_size if stat.S_ISREG(mode) else target}\0".encode())
            member = _member(entry, target)
            if stat.S_ISREG(mode):
                with entry.path.open("rb") as file:
                    reader = _Reader(file, digest, entry, told)
                    if archive is not None:
                        archive.addfile(member, reader)
                    reader.finish()
                total += entry.status.st_size
            elif archive is not None:
                archive.addfile(member)
    except UnicodeEncodeError as error:
        raise _unusable(source, f"it has a name that is no UTF-8: {error.object!r}") from error
    except OSError as error:
        if error.filename is None:  # the stream's own
            raise
        raise _unusable(Path(os.fsdecode(error.filename)), error.strerror or "it cannot be read") from error
    return Tree(digest.hexdigest(), total)


def _entries(source: Path, name: str) -> Iterator[_Entry]:
    """Depth first, by name; a directory before what it holds."""
    status = source.stat()
    if stat.S_ISREG(status.st_mode):
        yield _Entry(source, name or source.name, status)
        return
    if not stat.S_ISDIR(status.st_mode):
        raise _unusable(source, "it is neither a file nor a directory")
    count = 0
    open_directories = [_Entry(source, ".", status)]
    while open_directories:
        entry = open_directories.pop()
        count += 1
        if count > FILES_MAX:
            raise _unusable(source, f"it has more than {FILES_MAX} files")
        mode = entry.status.st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISLNK(mode)):
            raise _unusable(entry.path, "it is neither a file, a directory nor a link")
        yield entry
        if stat.S_ISDIR(mode):
            for inner in sorted(entry.path.iterdir(), reverse=True):
                open_directories.append(_Entry(inner, f"{entry.name}/{inner.name}", inner.lstat()))


def _member(entry: _Entry, target: str) -> tarfile.TarInfo:
    member = tarfile.TarInfo(entry.name)
    mode = entry.status.st_mode
    member.mode, member.mtime = stat.S_IMODE(mode), int(entry.status.st_mtime)
    if stat.S_ISREG(mode):
        member.size = entry.status.st_size
    elif stat.S_ISDIR(mode):
        member.type = tarfile.DIRTYPE
    else:
        member.type, member.linkname = tarfile.SYMTYPE, target
    return member


class _Reader:
    """A file whose content goes into a digest on its way, and that must be as long as it was said to be."""

    def __init__(self, file: BinaryIO, digest: "hashlib._Hash", entry: _Entry, told: Told) -> None:
        self._file = file
        self._digest = digest
        self._entry = entry
        self._told = told
        self._left = entry.status.st_size

    def read(self, count: int = _PIECE) -> bytes:
        piece = self._file.read(min(count, self._left))
        if not piece and self._left and count:
            raise _unusable(self._entry.path, "it became shorter while it was read")
        self._digest.update(piece)
        self._told(len(piece))
        self._left -= len(piece)
        return piece

    def finish(self) -> None:
        while self._left:
            self.read()


def _unusable(path: Path, why: str) -> Invalid:
    return Invalid(f"{path} cannot be copied into the image: {why}", hint="correct the recipe, or the file")
