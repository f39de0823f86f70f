"""Waiting for the kernel to tell: a process's end (pidfd), a file's appearance (inotify)."""

import asyncio
import contextlib
import ctypes
import os
from collections.abc import AsyncIterator
from pathlib import Path

from banger.system.host import start_ticks

_IN_CREATE, _IN_MOVED_TO, _IN_CLOEXEC, _IN_NONBLOCK = 0x100, 0x80, 0o2000000, 0o4000
_libc = ctypes.CDLL(None, use_errno=True)


async def readable(descriptor: int) -> None:
    """Return once the descriptor has something to read."""
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(descriptor, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(descriptor)


async def process_end(pid: int, ticks: int) -> int | None:
    """Wait until the process that started at `ticks` has ended, and reap it if it is our child.

    Returns its exit status (negative: the signal that killed it), or None when it was not our child to reap.
    """
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return None
    try:
        # a pid may have been recycled before it was opened; the start time tells
        if start_ticks(pid) == ticks:
            await readable(descriptor)
    finally:
        os.close(descriptor)
    try:
        reaped, status = os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return None
    return os.waitstatus_to_exitcode(status) if reaped else None


@contextlib.asynccontextmanager
async def _directory_changes(directory: Path) -> AsyncIterator[int]:
    descriptor = _libc.inotify_init1(_IN_CLOEXEC | _IN_NONBLOCK)
    if descriptor < 0:
        raise OSError(ctypes.get_errno(), "inotify_init1")
    try:
        if _libc.inotify_add_watch(descriptor, os.fsencode(directory), _IN_CREATE | _IN_MOVED_TO) < 0:
            raise OSError(ctypes.get_errno(), "inotify_add_watch", str(directory))
        yield descriptor
    finally:
        os.close(descriptor)


async def file_appears(path: Path) -> None:
    """Return once `path` exists. The caller sets the deadline; its directory must exist."""
    async with _directory_changes(path.parent) as descriptor:
        while not path.exists():
            await readable(descriptor)
            os.read(descriptor, 65536)
