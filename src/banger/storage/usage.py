"""What files take on their disk: blocks that are allocated, never sizes.

Paths are plain text here: there may be a thousand VMs, and making a `Path` costs more than asking for a file's blocks.
"""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from stat import S_ISREG

from banger.model.capacity import Extent, Used
from banger.paths import DISKS
from banger.storage.sharing import SharedOf

_RAW = ".ext4"  # a disk that may be a clone of another; what an overlay or a dm-snapshot has is its own


def measure_disks(directory: str, names: Iterable[str], device: int, shared_of: SharedOf) -> list[Used]:
    """What the disks of VMs take, whose directories have these names; `device`: the filesystem that is accounted for.

    What is gone, or not there yet, takes nothing.
    """
    try:
        inside = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return [Used() for _ in names]
    try:
        return [_sum(directory, inside, (f"{name}/{disk}" for disk in DISKS), device, shared_of) for name in names]
    finally:
        os.close(inside)


def measure(directory: Path | str, device: int, shared_of: SharedOf) -> Used:
    """What all files in a directory, and below it, take; files may come and go meanwhile.

    Links are not followed, but the directory may be one.
    """
    return _sum("", None, _below(os.fspath(directory)), device, shared_of)


def _sum(directory: str, inside: int | None, paths: Iterable[str], device: int, shared_of: SharedOf) -> Used:
    """Of paths in `directory`, which is open as `inside`: that saves most of the way to each."""
    allocated = elsewhere = 0
    shared: list[Extent] = []
    for path in paths:
        try:
            seen = os.stat(path, dir_fd=inside, follow_symlinks=False)
        except OSError:
            continue
        if not S_ISREG(seen.st_mode):
            continue
        if seen.st_dev != device:
            elsewhere += seen.st_blocks * 512
            continue
        allocated += seen.st_blocks * 512
        if path.endswith(_RAW):
            shared += shared_of(f"{directory}/{path}" if directory else path, seen)
    return Used(allocated, elsewhere, tuple(shared))


def _below(directory: str) -> Iterator[str]:
    """What cannot be read is passed over, as what is gone is."""
    todo = [directory]
    while todo:
        try:
            with os.scandir(todo.pop()) as entries:
                found = list(entries)
        except OSError:
            continue
        for entry in found:
            if entry.is_dir(follow_symlinks=False):
                todo.append(entry.path)
            else:
                yield entry.path
