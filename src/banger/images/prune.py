"""Taking away what can be made again: layers of builds, downloads, packages, half-done imports, replaced parts.

What goes is moved into a directory of its own first, which takes no time, and removed from there; `sweep` removes
what a killed daemon has left of it.
"""

import os
import secrets
import stat
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

from banger.images.catalog import workspace
from banger.images.parts import replaced_parts
from banger.model.catalogue import PrunedKind
from banger.paths import Paths
from banger.system.files import in_thread, remove_tree
from banger.system.locks import lock_existing

LAYERS, DOWNLOADS, PACKAGES, IMPORTS, PARTS = "layers", "downloads", "packages", "imports", "replaced parts"
KINDS = (LAYERS, IMPORTS, PARTS, DOWNLOADS, PACKAGES)
PACKAGE_CACHES = ("debian",)  # below the cache directory, by distribution
_DOOMED = ".pruned-"
_UNFINISHED_S = 86400.0  # a layer without its other half may be in the making for so long


class Selection(NamedTuple):
    """What goes of one kind: files and directories, whole."""

    kind: str
    entries: tuple[Path, ...]


def select(paths: Paths, kind: str, *, layers_older_than: float) -> Selection:
    """What of a kind can go now; `layers_older_than`: seconds since the epoch. Quick: nothing is measured."""
    found = {
        LAYERS: lambda: old_layers(paths.layers, layers_older_than),
        IMPORTS: lambda: _entries(paths.imports),
        PARTS: lambda: replaced_parts(paths),
        DOWNLOADS: lambda: [entry for entry in _entries(paths.downloads) if not _is_locked(entry)],
        PACKAGES: lambda: [
            path for name in PACKAGE_CACHES for path in _entries(paths.cache / name) if not _is_locked(path / "lock")
        ],
    }
    return Selection(kind, tuple(found[kind]()))


def _entries(directory: Path) -> list[Path]:
    try:
        return sorted(directory.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def old_layers(directory: Path, older_than: float) -> list[Path]:
    """The files of layers that were last used before this, and that nobody has locked.

    A layer's use is the later time of change of its two files. Halves of layers go a day after they were made.
    """
    keys = {path.stem for path in _entries(directory) if path.suffix in (".qcow2", ".json")}
    old = sorted(key for key in keys if _is_old(directory, key, older_than))
    files = [directory / f"{key}{suffix}" for key in old for suffix in (".json", ".qcow2")]
    return [file for file in files if file.exists()]


def _is_old(directory: Path, key: str, older_than: float) -> bool:
    files = [file for suffix in (".json", ".qcow2") if (file := directory / f"{key}{suffix}").exists()]
    if len(files) < 2:
        older_than = min(older_than, time.time() - _UNFINISHED_S)
    return all(file.stat().st_mtime < older_than and not _is_locked(file) for file in files)


def _is_locked(path: Path) -> bool:
    """Whether somebody holds a lock on a file, as who uses it does (flock(2))."""
    try:
        descriptor = lock_existing(path, shared=False)
    except OSError:
        return False  # a link, or gone meanwhile
    if descriptor is None:
        return True
    os.close(descriptor)
    return False


def measure(selection: Selection) -> PrunedKind:
    """How many files these are, and what they take on the disk; a file with several names counts once."""
    files, seen = 0, {}
    for status in _statuses(selection.entries):
        if not stat.S_ISDIR(status.st_mode):
            files += 1
        seen[status.st_dev, status.st_ino] = status.st_blocks * 512
    return PrunedKind(selection.kind, files, sum(seen.values()))


def _statuses(entries: Iterable[Path]) -> Iterator[os.stat_result]:
    for entry in entries:
        try:
            yield (status := entry.lstat())
        except FileNotFoundError:
            continue
        if stat.S_ISDIR(status.st_mode):
            yield from _statuses(_entries(entry))


@asynccontextmanager
async def bin_for(paths: Paths, kind: str) -> AsyncIterator[Path]:
    """A directory on the filesystem of what goes of a kind; all that is in it afterwards is removed."""
    if kind == PARTS:
        async with workspace(paths) as work:
            yield work
        return
    directory = paths.cache / f"{_DOOMED}{secrets.token_hex(6)}"
    directory.mkdir(mode=0o700, parents=True)
    try:
        yield directory
    finally:
        await remove_tree(directory)


async def take_away(paths: Paths, choose: Callable[[], Selection], kind: str) -> PrunedKind:
    """Remove what `choose` names when all is ready: between that and its being out of the way nothing is awaited."""
    async with bin_for(paths, kind) as directory:
        gone = []
        for number, entry in enumerate(choose().entries):
            gone.append(directory / str(number))
            entry.rename(gone[-1])
        return await in_thread(measure, Selection(kind, tuple(gone)))


async def sweep(paths: Paths) -> None:
    """Remove what a killed daemon was removing. Only at start."""
    for left in paths.cache.glob(f"{_DOOMED}*"):
        await remove_tree(left)
