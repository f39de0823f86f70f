"""What files take on their disk: blocks that are allocated, never sizes.

Paths are plain text here: there may be a thousand VMs, and making a `Path` costs more than asking for a file's blocks.
"""

import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from banger.model.capacity import Extent, Used
from banger.paths import DISKS
from banger.storage.sharing import SharedOf

_RAW = ".ext4"  # a disk that may be a clone of another; what an overlay or a dm-snapshot has is its own
_File = tuple[str, os.stat_result]


def measure_disks(directory: str, device: int, shared_of: SharedOf) -> Used:
    """What a VM's disks take; `device` is the number of the filesystem that is accounted for.

    What is gone, or not there yet, takes nothing.
    """
    return _sum(_existing(f"{directory}/{name}" for name in DISKS), device, shared_of)


def measure(directory: Path | str, device: int, shared_of: SharedOf) -> Used:
    """What all files in a directory, and below it, take; files may come and go meanwhile.

    Links are not followed, but the directory may be one.
    """
    return _sum(_below(os.fspath(directory)), device, shared_of)


def _sum(files: Iterable[_File], device: int, shared_of: SharedOf) -> Used:
    allocated = elsewhere = 0
    shared: list[Extent] = []
    for path, seen in files:
        if not stat.S_ISREG(seen.st_mode):
            continue
        if seen.st_dev != device:
            elsewhere += seen.st_blocks * 512
            continue
        allocated += seen.st_blocks * 512
        if path.endswith(_RAW):
            shared += shared_of(path, seen)
    return Used(allocated, elsewhere, tuple(shared))


def _existing(paths: Iterable[str]) -> Iterator[_File]:
    for path in paths:
        try:
            yield path, os.lstat(path)
        except OSError:
            continue


def _below(directory: str) -> Iterator[_File]:
    """What cannot be read is passed over, as what is gone is."""
    todo = [directory]
    while todo:
        try:
            with os.scandir(todo.pop()) as entries:
                found = list(entries)
        except OSError:
            continue
        todo += [entry.path for entry in found if entry.is_dir(follow_symlinks=False)]
        yield from _existing(entry.path for entry in found if not entry.is_dir(follow_symlinks=False))
