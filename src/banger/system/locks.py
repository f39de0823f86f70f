"""Advisory locks on files, released by the kernel when their holder ends (flock(2))."""

import errno
import fcntl
import os
from contextlib import ExitStack
from pathlib import Path

from banger.model.errors import Timeout
from banger.system.process import find_program, kill_group, spawn


def lock_existing(path: Path, *, shared: bool) -> int | None:
    """A descriptor of a file that is only read, locked; None when somebody has it locked otherwise. Raises `OSError`.

    The lock is there for as long as this descriptor is open, here or in a process that inherited it.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        # whoever had it locked may have put another file there, or none
        if not os.path.samestat(os.fstat(descriptor), path.lstat()):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    except BlockingIOError:
        os.close(descriptor)
        return None
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


class FileLock:
    """An exclusive flock on a file; the file stays, only the lock matters."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = -1

    def try_acquire(self) -> bool:
        descriptor = self._open()
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return False
        self._descriptor = descriptor
        return True

    def _open(self) -> int:
        return os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    async def acquire(self, timeout: float) -> None:
        """Wait until its holder, of whatever process, has released it. Raises `Timeout` after so many seconds."""
        if self.try_acquire():
            return
        descriptor = self._open()
        with ExitStack() as on_failure:
            on_failure.callback(os.close, descriptor)
            # a lock belongs to the open file, which we share with flock(1): it waits, and what it gets is ours
            argv = [find_program("flock", package="util-linux"), "--wait", f"{timeout:g}", str(descriptor)]
            child = await spawn(argv, pass_fds=(descriptor,))
            try:
                status = await child.wait()
            finally:
                await kill_group(child)
            if status != 0:
                raise Timeout(f"{self._path} has been locked for {timeout:g} s", hint="try again in a moment")
            on_failure.pop_all()
        self._descriptor = descriptor

    def write(self, text: str) -> None:
        """Replace the file's content, for people who look: it is not the lock."""
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, text.encode(), 0)

    def release(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
