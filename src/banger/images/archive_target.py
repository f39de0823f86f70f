"""Where an export goes: a file, which is there whole or not at all, or a pipe."""

import errno
import os
import secrets
import select
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from banger.model.errors import BangerError, Conflict, HostRequirement, Invalid
from banger.system.files import sync_path
from banger.system.stoppable import Stop

_PARTIAL = ".partial-"
_SILENCE_S = 600.0


class Output:
    """An open descriptor. `count` bytes were written."""

    def __init__(self, descriptor: int, stop: Stop) -> None:
        self.count = 0
        self._descriptor = descriptor
        self._stop = stop

    def write(self, data: bytes) -> int:
        """All of it. Raises `Cancelled`, `Timeout` when a pipe takes nothing, `OSError`."""
        left = memoryview(data)
        while left:
            try:
                left = left[os.write(self._descriptor, left) :]
            except BlockingIOError:
                self._stop.wait_for(self._descriptor, select.POLLOUT, _SILENCE_S)
        self.count += len(data)
        return len(data)


def check_target(path: Path, *, force: bool) -> None:
    """Whether a file can be written there. Raises `Invalid`, `Conflict` when there is one."""
    if not path.is_absolute():
        raise Invalid(f"{path} is not absolute")
    if path.is_dir() or (path.exists() and not path.is_file()):
        raise Invalid(f"{path} is there already, and is no file", hint="name a file with --output")
    if not path.parent.is_dir():
        raise Invalid(f"there is no directory {path.parent}", hint="make it first, or name another file with --output")
    if os.path.lexists(path) and not force:
        raise Conflict(f"there is a file {path} already", hint="name another with --output, or --force replaces it")


@contextmanager
def file_target(path: Path, force: bool, notes: Path, stop: Stop) -> Iterator[Output]:
    """A file beside `path` that gets its name in the end, durably, or is gone.

    `notes` is the directory in which `sweep_targets` finds what a killed daemon left. Raises `BangerError`.
    """
    token = secrets.token_hex(4)
    partial, note = path.with_name(f"{path.name}{_PARTIAL}{token}"), notes / token
    with _explained(path):
        notes.mkdir(parents=True, exist_ok=True, mode=0o700)
        note.symlink_to(partial)
        try:
            sync_path(notes)
            descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                yield Output(descriptor, stop)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            check_target(path, force=force)  # again: it has taken a while
            partial.rename(path)
            sync_path(path.parent)
        finally:
            partial.unlink(missing_ok=True)
            note.unlink()


@contextmanager
def stream_target(path: Path, stop: Stop) -> Iterator[Output]:
    """A pipe, or what else can be written to. Raises `BangerError`."""
    with _explained(path):
        # in a process of somebody's, so that it is opened anew, and does not block for that process
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
        try:
            yield Output(descriptor, stop)
        finally:
            os.close(descriptor)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except BrokenPipeError as error:
        raise BangerError("whoever read the archive has left", hint="look at the other end of the pipe") from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise HostRequirement(
                f"there is no room for {path}: {error.strerror}", hint="make room, or name another place with --output"
            ) from error
        raise Invalid(f"cannot write {path}: {error.strerror}", hint="name another place with --output") from error


def sweep_targets(notes: Path) -> None:
    """Remove what exports of a killed daemon had begun to write. Only at start."""
    for note in notes.glob("*"):
        partial = note.readlink()
        if partial.name.endswith(f"{_PARTIAL}{note.name}"):
            try:
                partial.unlink(missing_ok=True)
            except OSError:
                continue  # its filesystem is not there now: next time
        note.unlink()
