"""Programs that outlive the process that started them: killed -9, it could not end them, and they write on."""

import asyncio
import os
import signal
from pathlib import Path

from banger.system.host import start_ticks
from banger.system.process import OWNER
from banger.system.watch import process_end

END_S = 10.0


async def end_left_over(owner: str) -> list[str]:
    """Kill the programs of whoever called `own_programs` with this name and is dead; returns how they were started.

    The caller knows that nobody who lives has the name. What the kernel does not let go of in time writes no more.
    """
    told: list[str] = []
    try:
        async with asyncio.timeout(END_S):
            # again, as one may have started another meanwhile
            while found := _started_by(owner):
                told += found.values()
                for pid in found:
                    await _kill(pid)
    except TimeoutError:
        pass
    return told


def _started_by(owner: str) -> dict[int, str]:
    mark = os.fsencode(f"{OWNER}={owner}")
    found = {}
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (directory / "environ").read_bytes().split(b"\0"):
                words = (directory / "cmdline").read_bytes().split(b"\0")
                found[int(directory.name)] = os.fsdecode(b" ".join(words)).strip()
        except OSError:
            continue  # it has ended, or is somebody else's
    found.pop(os.getpid(), None)
    return found


async def _kill(pid: int) -> None:
    ticks = start_ticks(pid)
    if ticks is None:
        return
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    await process_end(pid, ticks)
