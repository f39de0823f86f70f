"""Taking two programs out of a release's archive. The archive is hostile until this module is done with it."""

import errno
import gzip
import hashlib
import io
import os
import tarfile
import zlib
from pathlib import Path

from banger.model.errors import HostRequirement, Invalid

PROGRAM_MAX = 64 * 1024 * 1024
UNPACKED_MAX = 1024 * 1024 * 1024
MEMBERS_MAX = 1000
# headers that describe a member are read whole: this is what bounds them
_READ_MAX = 1024 * 1024
_HINT = "this is not an archive of Firecracker for x86-64 as its makers release it"
_ELF_X86_64 = 62
_EXECUTABLE, _POSITION_INDEPENDENT = 2, 3


class _Bounded(io.BufferedIOBase):
    """The unpacked bytes of a gzip file: so many in all, so many at once."""

    def __init__(self, file: gzip.GzipFile) -> None:
        self._file = file

    def readable(self) -> bool:
        return True

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or not 0 <= size <= _READ_MAX:
            raise _bad("it has a header of impossible size")
        self._check(self._file.tell() + size)
        return self._file.read(size)

    def tell(self) -> int:
        return self._file.tell()

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        self._check(offset)
        return self._file.seek(offset, whence)

    def _check(self, end: int) -> None:
        if end > UNPACKED_MAX:
            raise _bad(f"it unpacks to more than {UNPACKED_MAX} bytes")


def unpack(archive: Path, version: str, directory: Path) -> dict[str, str]:
    """Write `firecracker` and `jailer` of the archive to the directory, mode 0755; returns their SHA-256 in hex.

    Raises `Invalid` for an archive that is not the release's, `HostRequirement` when the disk is full.
    """
    wanted = {f"release-v{version}-x86_64/{name}-v{version}-x86_64": name for name in ("firecracker", "jailer")}
    try:
        with gzip.open(archive) as packed, tarfile.open(fileobj=_Bounded(packed), mode="r:") as members:
            digests = _take(members, wanted, directory)
    except (tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise _bad(str(error)) from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise HostRequirement(
                f"there is no room for the engine in {directory.parent}", hint="free some space on that disk"
            ) from error
        raise
    if missing := sorted(set(wanted.values()) - set(digests)):
        raise _bad(f"it has no {' and no '.join(missing)} of version {version}")
    return digests


def _take(members: tarfile.TarFile, wanted: dict[str, str], directory: Path) -> dict[str, str]:
    digests: dict[str, str] = {}
    for number, member in enumerate(members):
        if number >= MEMBERS_MAX:
            raise _bad(f"it has more than {MEMBERS_MAX} members")
        # absolute names, names and links that lead outside, and devices are refused, wanted or not
        safe = tarfile.data_filter(member, str(directory))
        name = wanted.get(safe.name)
        if name is None:
            continue
        if not member.isreg() or member.issparse() or name in digests:
            raise _bad(f"its {name} is not one plain file")
        if not 0 < member.size <= PROGRAM_MAX:
            raise _bad(f"its {name} has {member.size} bytes")
        digests[name] = _write(members, member, directory / name)
    return digests


def _write(members: tarfile.TarFile, member: tarfile.TarInfo, target: Path) -> str:
    source = members.extractfile(member)
    assert source is not None, "extractfile has content for every regular file"
    digest = hashlib.sha256()
    with source, target.open("xb") as file:
        left = member.size
        while left:
            piece = source.read(min(left, _READ_MAX))
            if not piece:
                raise _bad("it ends too early")
            if left == member.size and not _is_program(piece):
                raise _bad(f"its {target.name} is not a program for x86-64")
            digest.update(piece)
            file.write(piece)
            left -= len(piece)
        file.flush()
        os.fchmod(file.fileno(), 0o755)
        os.fsync(file.fileno())
    return digest.hexdigest()


def _is_program(head: bytes) -> bool:
    """Whether this begins like a 64-bit little-endian ELF executable for x86-64 (elf(5))."""
    kind, machine = int.from_bytes(head[16:18], "little"), int.from_bytes(head[18:20], "little")
    return (
        len(head) >= 64
        and head[:6] == b"\x7fELF\x02\x01"
        and kind in (_EXECUTABLE, _POSITION_INDEPENDENT)
        and machine == _ELF_X86_64
    )


def _bad(what: str) -> Invalid:
    return Invalid(f"the archive cannot be used: {what}", hint=_HINT)
