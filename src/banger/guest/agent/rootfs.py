"""Files below a root: the guest's own, or, in a test, a directory that stands for it."""

import os
from _thread import get_ident

_PROGRAM_FOLDERS = ("/usr/local/sbin/", "/usr/local/bin/", "/usr/sbin/", "/usr/bin/", "/sbin/", "/bin/")


def read_all(path: str, limit: int) -> bytes:
    """The first `limit` bytes of a file, of /proc too, where one read gives less; empty when it cannot be read."""
    data = bytearray()
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        while len(data) < limit and (piece := os.read(fd, min(65536, limit - len(data)))):
            data += piece
    except OSError:
        pass  # what came before it counts
    finally:
        os.close(fd)
    return bytes(data)


def names_in(folder: str) -> "list[str]":
    """Sorted names in a directory; none when it cannot be read."""
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []


def write_whole(path: str, data: bytes, mode: int) -> None:
    """Write a file so that a reader sees the old one or the new one, whole. Raises OSError."""
    temporary = f"{path}.banger-{get_ident()}"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    try:
        try:
            os.fchmod(fd, mode)
            while data:
                data = data[os.write(fd, data) :]
        finally:
            os.close(fd)
        os.rename(temporary, path)
    except OSError:
        os.unlink(temporary)
        raise


def find_program(root: str, name: str) -> "str | None":
    """Where a program is, by the usual folders below `root`; None when it is nowhere."""
    found = (root + folder + name for folder in _PROGRAM_FOLDERS)
    return next((path for path in found if os.access(path, os.X_OK)), None)
