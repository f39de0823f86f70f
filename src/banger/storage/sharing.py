"""Which blocks files share: asked of the kernel once, and again when a file changes.

To ask takes longer than all else of accounting together: on XFS 0.1 ms for a disk of 25 extents.
"""

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

from banger.model.capacity import Extent, Ranges
from banger.system.extents import shared_extents
from banger.system.files import can_clone

T = TypeVar("T")
Extents = tuple[Extent, ...]
SharedOf = Callable[[str, os.stat_result], Extents]
# Blocks of what was written get their place when the kernel writes them out, and a file's times do not tell of that:
# after 30 s and a little.
_WRITTEN_OUT_S = 60.0
# Deduplication, defragmentation and balancing move blocks without a trace in a file's times.
_REMEMBERED_S = 600.0
_REMEMBERED_EXTENTS = 1 << 17  # some 17 MB: a guest can break its disk into as many as it likes


class Sharing:
    """What is remembered of one filesystem's files, and whether its files can share blocks at all."""

    def __init__(
        self,
        can_share: Callable[[Path], bool] = can_clone,
        read: Callable[[str], Extents] = shared_extents,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._can_share = can_share
        self._read = read
        self._now = now
        self._tried: dict[int, bool] = {}
        self._seen: dict[int, _Seen] = {}
        self._shared = Ranges()
        self._lock = threading.Lock()

    def look(self, directory: Path, measure: Callable[[SharedOf], T]) -> T:
        """What `measure` finds, which is given a function for a file's shared extents, and may be called twice.

        All files that it asks for lie on the filesystem of `directory`.
        """
        if not self._may_share(directory):
            return measure(_nothing)
        with self._lock:
            look = _Look(self._seen, self._read, self._now())
            found = measure(look.extents)
            if look.recalled and look.has_news(self._shared):
                look = _Look({}, self._read, self._now())
                found = measure(look.extents)
            self._seen, self._shared = look.seen, look.shared()
            return found

    def _may_share(self, directory: Path) -> bool:
        device = directory.stat().st_dev
        if device not in self._tried:
            try:
                self._tried[device] = self._can_share(directory)
            except OSError:
                return True
        return self._tried[device]


class _Seen(NamedTuple):
    """A file's shared extents, and how it was when they were read."""

    read_at: float
    changed_ns: int
    blocks: int
    extents: Extents


class _Look:
    """One look at all files.

    A file that is unchanged has the blocks that it had. What it shares may have become less, which does no harm as only
    what another file is seen to have as well is counted; or more, when another was cloned from it. That one is new, or
    changed, and shares blocks that no file shared before: `has_news`.
    """

    def __init__(self, before: dict[int, _Seen], read: Callable[[str], Extents], now: float) -> None:
        self._before = {inode: seen for inode, seen in before.items() if 0 <= now - seen.read_at < _REMEMBERED_S}
        self._read = read
        self._now = now
        self._left = _REMEMBERED_EXTENTS
        self._all: dict[int, Extents] = {}
        self._new: dict[Extents, Extents] = {}
        self.seen: dict[int, _Seen] = {}
        self.recalled = False

    def extents(self, path: str, stat: os.stat_result) -> Extents:
        inode, changed_ns = stat.st_ino, stat.st_ctime_ns
        known = self._before.get(inode)
        if known is not None and known.changed_ns == changed_ns and known.blocks == stat.st_blocks:
            self.recalled = True
            extents = known.extents
        else:
            extents = self._read(path)
            extents = self._new.setdefault(extents, extents)  # fresh clones have the same ones: kept once
            settled = self._now - changed_ns / 1e9 >= _WRITTEN_OUT_S
            known = _Seen(self._now, changed_ns, stat.st_blocks, extents) if settled else None
        self._all[id(extents)] = extents
        if known is not None and (left := self._left - len(extents)) >= 0:
            self._left = left
            self.seen[inode] = known
        return extents

    def has_news(self, shared: Ranges) -> bool:
        """Whether a file that was read has shared extents that are not in `shared`, which is used up."""
        new = set().union(*self._new)
        return any(shared.add(start, start + length) < length for start, length in new)

    def shared(self) -> Ranges:
        """What any file shares."""
        ranges = Ranges()
        for start, length in sorted(set().union(*self._all.values())):
            ranges.add(start, start + length)
        return ranges


def _nothing(_path: str, _stat: os.stat_result) -> Extents:
    return ()
