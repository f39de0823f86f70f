"""Blocking work that tells how far it is, and that can be cancelled."""

import asyncio
from collections.abc import Callable
from typing import TypeVar

from banger.model.progress import Progress
from banger.system.stoppable import Stop, run_stoppable

T = TypeVar("T")


async def counted(work: Callable[[Callable[[int], None]], T], progress: Progress, total: int | None) -> T:
    """Do the work in a thread. What it is given is to be told of every so many bytes done, of `total` if that is known.

    On cancellation that raises `Cancelled`, and this returns when the work has ended.
    """
    loop, done = asyncio.get_running_loop(), 0

    def stoppable(stop: Stop) -> T:
        def told(count: int) -> None:
            nonlocal done
            stop.check()
            done += count
            loop.call_soon_threadsafe(progress.progress, done if total is None else min(done, total), total, "bytes")

        return work(told)

    return await run_stoppable(stoppable)
