"""Single files out of gzipped tar archives. An archive is hostile until this module is done with it."""

import errno
import gzip
import hashlib
import io
import os
import tarfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

# headers that describe a member are read whole: this is what bounds them
READ_MAX = 1024 * 1024


class BadArchive(Exception):
    """The archive is not what it should be; the message says in what, for `the archive cannot be used: ...`."""


class NoRoom(Exception):
    """The disk that the file should go to is full."""


class _Bounded(io.BufferedIOBase):
    """The unpacked bytes of a gzip file: so many in all, so many at once."""

    def __init__(self, file: gzip.GzipFile, unpacked_max: int) -> None:
        self._file = file
        self._max = unpacked_max

    def readable(self) -> bool:
        return True

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or not 0 <= size <= READ_MAX:
            raise BadArchive("it has a header of impossible size")
        self._check(self._file.tell() + size)
        return self._file.read(size)

    def tell(self) -> int:
        return self._file.tell()

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        self._check(offset)
        return self._file.seek(offset, whence)

    def _check(self, end: int) -> None:
        if end > self._max:
            raise BadArchive(f"it unpacks to more than {self._max} bytes")


@contextmanager
def open_archive(path: Path, *, unpacked_max: int) -> Iterator[tarfile.TarFile]:
    """The archive's members, of which at most `unpacked_max` bytes are unpacked.

    Raises `BadArchive` for all that is wrong with the archive, `NoRoom` when what is written inside finds a full disk.
    """
    try:
        with gzip.open(path) as packed, tarfile.open(fileobj=_Bounded(packed, unpacked_max), mode="r:") as members:
            yield members
    except (tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise BadArchive(str(error)) from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NoRoom from error
        raise


def write_member(
    members: tarfile.TarFile,
    member: tarfile.TarInfo,
    target: Path,
    *,
    mode: int,
    largest: int,
    told: Callable[[bytes], None] = lambda piece: None,
) -> str:
    """Write one regular, plain member to `target`, durably; returns its SHA-256 in hex. Its name is not used.

    `told` gets each piece before it is written, and may raise. Raises `BadArchive` for a member that is a link, a
    directory, sparse, empty or has more than `largest` bytes.
    """
    if not member.isreg() or member.issparse():
        raise BadArchive(f"its {target.name} is not one plain file")
    if not 0 < member.size <= largest:
        raise BadArchive(f"its {target.name} has {member.size} bytes")
    source = members.extractfile(member)
    assert source is not None, "extractfile has content for every regular file"
    digest = hashlib.sha256()
    with source, target.open("xb") as file:
        left = member.size
        while left:
            piece = source.read(min(left, READ_MAX))
            if not piece:
                raise BadArchive("it ends too early")
            told(piece)
            digest.update(piece)
            file.write(piece)
            left -= len(piece)
        file.flush()
        os.fchmod(file.fileno(), mode)
        os.fsync(file.fileno())
    return digest.hexdigest()
