"""What is in an initramfs that somebody brings: which modules, and whose first process. Nothing of it is run."""

import os
import re
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from banger.images.modules import module_name
from banger.images.unpacked import BadInitramfs, Budget, Source, unpacked
from banger.model.image import INIT_VERSION

MAX_FILE = 1024 * 1024 * 1024
MAX_ENTRIES, MAX_NAME = 200_000, 4096
_MAX_PIECES = 20_000  # archives, what is compressed, and zeros in between
_MAX_INIT = 256 * 1024
_PIECE = 256 * 1024
_HEAD = 110
_MAGICS = (b"070701", b"070702")
_HEX = re.compile(rb"[0-9A-Fa-f]{104}")
_MODULE = re.compile(r".+\.ko(\.(gz|xz|zst))?")
_TRAILER = b"TRAILER!!!"
_NESTED = 3  # compressed in compressed: the kernel does not, people have
_HINT = "give a cpio archive (newc), plain or compressed with gzip, xz, zstd, lz4, bzip2 or lzma"


class Initramfs(NamedTuple):
    """What was found: names of its modules, how many files, and the version of our first process (0: not ours)."""

    modules: frozenset[str]
    entries: int
    init_version: int


class _Found:
    """What has been seen so far; later files replace earlier ones, as when they are unpacked."""

    def __init__(self) -> None:
        self.modules: set[str] = set()
        self.entries = 0
        self.archives = 0
        self.pieces = 0
        self.init = b""


def read_initramfs(path: Path, told: Callable[[int], None] = lambda count: None) -> Initramfs:
    """Look through the file. `told` hears of the bytes that were read; what it raises ends the work.

    Raises `BadInitramfs` for a file that is none or goes beyond the bounds, `OSError`.
    """
    found, budget = _Found(), Budget()
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    with os.fdopen(fd, "rb", buffering=0) as file:
        seen = os.fstat(fd)
        if not stat.S_ISREG(seen.st_mode) or seen.st_size > MAX_FILE:
            raise BadInitramfs(f"{path} is no file of at most {MAX_FILE >> 20} MiB", hint=_HINT)
        _read(Source(iter(lambda: file.read(_PIECE), b""), told), budget, found, _NESTED)
    if not found.archives:
        raise BadInitramfs(f"{path} is no initramfs: there is no archive in it", hint=_HINT)
    return Initramfs(frozenset(found.modules), found.entries, _version(found.init))


def _read(source: Source, budget: Budget, found: _Found, depth: int) -> None:
    """All archives to the end of the source."""
    while head := source.peek(6):
        found.pieces += 1
        if found.pieces > _MAX_PIECES:
            raise BadInitramfs(f"the initramfs has more than {_MAX_PIECES} archives")
        if head[0] == 0:
            source.back(source.some().lstrip(b"\0"))
        elif head in _MAGICS:
            _archive(source, found)
        elif depth and (inner := unpacked(source, budget)) is not None:
            _read(inner, budget, found, depth - 1)
        elif found.archives:
            return  # the kernel complains of what is behind the last archive, and boots
        else:
            raise BadInitramfs("the file is neither a cpio archive nor compressed in a known way", hint=_HINT)


def _archive(source: Source, found: _Found) -> None:
    """The entries of one archive, to its trailer."""
    start = source.at
    for name, mode, size in _entries(source, start):
        found.entries += 1
        if found.entries > MAX_ENTRIES:
            raise BadInitramfs(f"the initramfs has more than {MAX_ENTRIES} files")
        text = name.decode(errors="replace").removeprefix("./").lstrip("/")
        if text == "init":
            found.init = source.peek(min(size, _MAX_INIT)) if stat.S_ISREG(mode) else b""
        elif stat.S_ISREG(mode) and _MODULE.fullmatch(text):
            # ours have a number before their name, in the order in which they are loaded
            found.modules.add(module_name(re.sub(r"^modules/\d+-", "", text)))
        source.skip(size)
    found.archives += 1


def _entries(source: Source, start: int) -> Iterator[tuple[bytes, int, int]]:
    """Name, mode and size of each; whoever iterates has read the content when he comes back."""
    while True:
        head = source.take(_HEAD)
        if len(head) < _HEAD or head[:6] not in _MAGICS or not _HEX.fullmatch(head[6:]):
            raise BadInitramfs("the initramfs is truncated, or its archive damaged")
        mode, size, length = (int(head[6 + 8 * field : 14 + 8 * field], 16) for field in (1, 6, 11))
        if not 0 < length <= MAX_NAME:
            raise BadInitramfs(f"the initramfs has a name of {length} bytes")
        name = source.take(length)
        if len(name) != length:
            raise BadInitramfs("the initramfs is truncated, or its archive damaged")
        _align(source, start)
        name = name.partition(b"\0")[0]
        if name == _TRAILER:
            source.skip(size)
            return
        yield name, mode, size
        _align(source, start)


def _align(source: Source, start: int) -> None:
    padding = -(source.at - start) % 4
    if padding and len(source.take(padding)) != padding:
        raise BadInitramfs("the initramfs is truncated, or its archive damaged")


def _version(init: bytes) -> int:
    """Of banger's first process, by what only it says."""
    if b"banger-initramfs:" not in init:
        return 0
    return INIT_VERSION if b"banger.work=" in init else 1
