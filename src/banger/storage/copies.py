"""Copies of disks: by sharing blocks where the filesystem can, else in full, with progress."""

import asyncio
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from banger.model.progress import Progress
from banger.system.files import allocated_bytes, clone_file, copy_sparse, in_thread

# for so many bytes, held until the end of the block
Room = Callable[[int], AbstractContextManager[None]]


async def copy_disk(source: Path, target: Path, progress: Progress, room: Room, *, what: str = "") -> None:
    """Make `target` with the content of `source`; O(1) where the filesystem shares blocks (it is tried).

    A full copy takes time and room: `room` is asked for it first, and may refuse; `what` is then told. Cancelling
    ends it; what it has written is the caller's to remove.
    """
    if await in_thread(clone_file, source, target):
        return
    if what:
        progress.note(f"this filesystem cannot share blocks (reflink): {what} is a full copy")
    with room(allocated_bytes(source)):
        await _copy(source, target, progress)


async def _copy(source: Path, target: Path, progress: Progress) -> None:
    loop, stop = asyncio.get_running_loop(), threading.Event()

    def told(done: int, total: int) -> bool:
        loop.call_soon_threadsafe(progress.progress, done, total, "bytes")
        return not stop.is_set()

    work = asyncio.ensure_future(in_thread(copy_sparse, source, target, told))
    try:
        await asyncio.shield(work)
    except asyncio.CancelledError:
        stop.set()
        await asyncio.wait({work})
        raise
