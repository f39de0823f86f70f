"""Copies of disks: blocks that are shared where the filesystem can, else all of them, with progress."""

import asyncio
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from banger.model.progress import Progress
from banger.system.files import allocated_bytes, clone_file, copy_sparse, in_thread

# for so many bytes, held until the end of the block
Room = Callable[[int], AbstractContextManager[None]]


async def duplicate(source: Path, target: Path, progress: Progress, room: Room) -> None:
    """Make `target` with the content of `source`, holes kept; O(1) where blocks can be shared.

    `room` is asked before a full copy, and may refuse. What is half-made when it fails or is cancelled is removed.
    """
    try:
        if not await in_thread(clone_file, source, target):
            with room(allocated_bytes(source)):
                await _copy(source, target, progress)
    except BaseException:
        target.unlink(missing_ok=True)
        raise


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
