"""Blocking work in a thread that ends soon after whoever waits for it was cancelled, waiting for pipes included."""

import asyncio
import os
import select
from collections.abc import Callable
from typing import TypeVar

from banger.model.errors import Cancelled, Timeout

T = TypeVar("T")


class Stop:
    """What the thread asks, often."""

    def __init__(self) -> None:
        self._event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._stopped = False

    def check(self) -> None:
        """Raise `Cancelled` once nobody waits for the work any more."""
        if self._stopped:
            raise Cancelled("this is not wanted any more")

    def wait_for(self, descriptor: int, event: int, timeout_s: float) -> None:
        """Until a descriptor can be read (`select.POLLIN`) or written (`POLLOUT`). Raises `Cancelled`, `Timeout`."""
        poll = select.poll()
        poll.register(descriptor, event)
        poll.register(self._event, select.POLLIN)
        found = poll.poll(timeout_s * 1000)
        self.check()
        if not found:
            raise Timeout(f"nothing has come or gone for {timeout_s:g} s", hint="look at the other end of the pipe")

    def stop(self) -> None:
        self._stopped = True
        os.eventfd_write(self._event, 1)

    def close(self) -> None:
        os.close(self._event)


async def run_stoppable(function: Callable[[Stop], T]) -> T:
    """Run the function in a thread, with what tells it to stop. It has ended when this returns, in whatever way."""
    stop = Stop()
    try:
        work = asyncio.ensure_future(asyncio.to_thread(function, stop))
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            stop.stop()
            await asyncio.wait({work})
            if not work.cancelled():
                work.exception()  # the cancellation is what the caller gets; this one is consumed
            raise
    finally:
        stop.close()
