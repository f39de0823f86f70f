"""Copies of disks: by sharing blocks where the filesystem can, else in full, with progress."""

import asyncio
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from banger.model.errors import HostRequirement
from banger.model.progress import Progress
from banger.system.files import allocated_bytes, clone_file, copy_sparse, in_thread

# for so many bytes, held until the end of the block
Room = Callable[[int], AbstractContextManager[None]]


async def copy_disk(source: Path, target: Path, progress: Progress, room: Room) -> None:
    """Make `target` with the content of `source`; O(1) where the filesystem shares blocks (it is tried).

    Else as `copy_whole`. What a cancelled one has written is the caller's to remove.
    """
    if not await in_thread(clone_file, source, target):
        await copy_whole(source, target, progress, room)


async def copy_whole(source: Path, target: Path, progress: Progress, room: Room) -> None:
    """Make `target` with the content of `source`, holes kept, with progress; `room` is asked first, and may refuse.

    Cancelling ends it early; `target` is there then. Raises `HostRequirement` when the disk is full.
    """
    loop, stop = asyncio.get_running_loop(), threading.Event()

    def told(done: int, total: int) -> bool:
        loop.call_soon_threadsafe(progress.progress, done, total, "bytes")
        return not stop.is_set()

    with room(allocated_bytes(source)):
        work = asyncio.ensure_future(in_thread(copy_sparse, source, target, told))
        try:
            await asyncio.shield(work)
        except asyncio.CancelledError:
            stop.set()
            await asyncio.wait({work})
            raise
        except OSError as error:
            raise HostRequirement(
                f"cannot copy {source}: {error.strerror}", hint="`banger capacity` shows the room"
            ) from error
