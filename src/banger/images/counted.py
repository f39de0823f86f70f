"""Blocking work that tells how far it is, and that can be cancelled."""

import asyncio
import threading
from collections.abc import Callable
from typing import TypeVar

from banger.model.errors import Cancelled
from banger.model.progress import Progress
from banger.system.files import in_thread

T = TypeVar("T")


async def counted(work: Callable[[Callable[[int], None]], T], progress: Progress, total: int) -> T:
    """Do the work in a thread. What it is given is to be told of every so many bytes done, of `total`.

    On cancellation that raises `Cancelled`, and this returns when the work has ended.
    """
    loop, stop, done = asyncio.get_running_loop(), threading.Event(), 0

    def told(count: int) -> None:
        nonlocal done
        if stop.is_set():
            raise Cancelled("this is not wanted any more")
        done += count
        loop.call_soon_threadsafe(progress.progress, min(done, total), total, "bytes")

    running = asyncio.ensure_future(in_thread(work, told))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        stop.set()
        await asyncio.wait({running})
        if not running.cancelled():
            running.exception()
        raise
