"""Waiting for the kernel to tell: a process's end (pidfd), a file's appearance and growth (inotify)."""

import asyncio
import contextlib
import ctypes
import errno
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from struct import Struct

from banger.model.errors import HostRequirement
from banger.system.host import start_ticks

_IN_MODIFY, _IN_MOVED_FROM, _IN_MOVED_TO, _IN_CREATE, _IN_DELETE = 0x2, 0x40, 0x80, 0x100, 0x200
_IN_CLOEXEC, _IN_NONBLOCK = 0o2000000, 0o4000
_EVENT = Struct("iIII")
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


def _inotify() -> int:
    descriptor: int = _libc.inotify_init1(_IN_CLOEXEC | _IN_NONBLOCK)
    if descriptor < 0:
        raise _error("inotify_init1")
    return descriptor


def _add_watch(descriptor: int, path: Path, events: int) -> int:
    watch: int = _libc.inotify_add_watch(descriptor, os.fsencode(path), events)
    if watch < 0:
        raise _error(str(path))
    return watch


def _error(what: str) -> HostRequirement | OSError:
    number = ctypes.get_errno()
    if number in (errno.EMFILE, errno.ENOSPC):
        return HostRequirement(
            f"cannot watch files: {os.strerror(number)}",
            hint="raise fs.inotify.max_user_instances and max_user_watches (sysctl)",
        )
    return OSError(number, os.strerror(number), what)


@contextlib.asynccontextmanager
async def _directory_changes(directory: Path) -> AsyncIterator[int]:
    descriptor = _inotify()
    try:
        _add_watch(descriptor, directory, _IN_CREATE | _IN_MOVED_TO)
        yield descriptor
    finally:
        os.close(descriptor)


async def file_appears(path: Path) -> None:
    """Return once `path` exists. The caller sets the deadline; its directory must exist."""
    async with _directory_changes(path.parent) as descriptor:
        while not path.exists():
            await readable(descriptor)
            os.read(descriptor, 65536)


class Growth:
    """Tells of writes to files: any number of them with one inotify instance. For use in a running event loop.

    Raises `HostRequirement` when the host gives no more inotify instances.
    """

    def __init__(self) -> None:
        self._descriptor = _inotify()
        self._written: dict[int, asyncio.Event] = {}
        asyncio.get_running_loop().add_reader(self._descriptor, self._read)

    @contextlib.contextmanager
    def of(self, path: Path) -> Iterator[asyncio.Event]:
        """An event that is set at each write to the file, for one caller at a time; its user clears it.

        Raises `OSError` when the file is not there.
        """
        watch = _add_watch(self._descriptor, path, _IN_MODIFY)
        written = self._written[watch] = asyncio.Event()
        try:
            yield written
        finally:
            # the same file may have been given to another caller meanwhile, with the same number
            if self._written.get(watch) is written:
                del self._written[watch]
                _libc.inotify_rm_watch(self._descriptor, watch)

    def _read(self) -> None:
        with contextlib.suppress(BlockingIOError):
            data = os.read(self._descriptor, 65536)
            while data:
                # struct inotify_event of inotify(7); events of files have no name
                watch, _, _, length = _EVENT.unpack_from(data)
                data = data[_EVENT.size + length :]
                if (written := self._written.get(watch)) is not None:
                    written.set()

    def close(self) -> None:
        """Once; nobody is told anything any more."""
        asyncio.get_running_loop().remove_reader(self._descriptor)
        os.close(self._descriptor)


class Changes:
    """Tells that something happened in a directory, or to one open file, or that the directory is gone.

    For use in a running event loop. Raises `HostRequirement` when the host gives no more inotify instances.
    """

    def __init__(self, directory: Path) -> None:
        self._descriptor = _inotify()
        self._file: int | None = None
        self._happened = asyncio.Event()
        try:
            _add_watch(self._descriptor, directory, _IN_CREATE | _IN_MOVED_TO)
            # a directory does not tell of its own end while a file that was in it is open
            _add_watch(self._descriptor, directory.parent, _IN_DELETE | _IN_MOVED_FROM)
        except OSError:
            os.close(self._descriptor)
            raise
        asyncio.get_running_loop().add_reader(self._descriptor, self._read)

    def watch(self, descriptor: int) -> None:
        """Tell of writes to this open file, and of its truncation; no longer of the file before."""
        if self._file is not None:
            _libc.inotify_rm_watch(self._descriptor, self._file)
        self._file = _add_watch(self._descriptor, Path(f"/proc/self/fd/{descriptor}"), _IN_MODIFY)

    def _read(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._descriptor, 65536)
        self._happened.set()

    def wake(self) -> None:
        """As if something had happened."""
        self._happened.set()

    async def next(self) -> None:
        """Return once something has happened since the last call."""
        await self._happened.wait()
        self._happened.clear()

    def close(self) -> None:
        """Once."""
        asyncio.get_running_loop().remove_reader(self._descriptor)
        os.close(self._descriptor)
