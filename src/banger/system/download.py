"""Downloads: bounded, resumable, cancellable. The standard library fetches, in a thread of its own.

What came is not to be trusted: the caller verifies a digest.
"""

import asyncio
import contextlib
import errno
import fcntl
import http.client
import io
import os
import re
import shutil
import socket
import ssl
import stat
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote, urlsplit

from banger.model.errors import BangerError, CommandFailed, Conflict, HostRequirement, Invalid, Timeout
from banger.system.files import sync_path
from banger.system.urls import opener

PARTIAL = ".partial"
STALL_S = 30.0
TRIES = 4
TICK_S = 0.25
_PIECE = 256 * 1024
_CONTENT_RANGE = re.compile(r"bytes (?:(\d{1,19})-\d{1,19}|\*)/(\d{1,19})")
_AGAIN = "run the command again; it goes on where it stopped"
Progress = Callable[[int, int | None], None]


class DownloadFailed(CommandFailed):
    """The other side refused, broke off, or sent what cannot be."""


@dataclass(frozen=True)
class Downloaded:
    """What a download did: the file's length in bytes, and how many of them an earlier one had left."""

    size: int
    resumed_at: int


async def download(
    url: str, target: Path, *, size_limit: int, progress: Progress = lambda done, total: None, stall_s: float = STALL_S
) -> Downloaded:
    """Fetch an http, https or file URL to `target`, durably; its directory must exist, a file there is replaced.

    At most `size_limit` bytes. `progress` hears of bytes done and in all (None: not known), on the caller's own
    event loop. Bytes that a failure or a cancellation left in `target`.partial are not fetched again.
    Raises `Invalid` (the URL), `HostRequirement` (no way to the server, no room on the disk), `Timeout` (no byte came
    for `stall_s` seconds), `DownloadFailed` (all else that the server does wrong), `Conflict` (under way elsewhere).
    """
    fetch = _Fetch(url, target, size_limit, stall_s)
    work = asyncio.ensure_future(asyncio.to_thread(fetch.run))
    try:
        while not (await asyncio.wait({work}, timeout=TICK_S))[0]:
            progress(fetch.done, fetch.total)
    except asyncio.CancelledError:
        fetch.cancel()
        await asyncio.wait({work})
        work.exception()  # the cancellation is what the caller gets; this one is consumed
        raise
    downloaded = work.result()
    progress(downloaded.size, downloaded.size)
    return downloaded


class _Stopped(Exception):
    """The caller has cancelled; nobody sees this one."""


class _Broken(Exception):
    """The connection ended too early; what came is good."""


class _Restart(Exception):
    """What is there cannot be continued."""


class _Source(Protocol):
    def read1(self, size: int, /) -> bytes: ...


class _Fetch:
    """One download. `run` works in a thread; `cancel` and the two counters are for others."""

    def __init__(self, url: str, target: Path, size_limit: int, stall_s: float) -> None:
        self.done = 0
        self.total: int | None = None
        self._url = url
        self._target = target
        self._partial = target.with_name(target.name + PARTIAL)
        self._limit = size_limit
        self._stall_s = stall_s
        self._stop = threading.Event()
        self._sockets: list[socket.socket] = []

    def cancel(self) -> None:
        """Make `run` end soon, wherever it waits."""
        self._stop.set()
        for connected in self._sockets:
            with contextlib.suppress(OSError):
                connected.shutdown(socket.SHUT_RDWR)

    def _connected(self, connected: socket.socket) -> None:
        self._sockets.append(connected)
        self._check_stop()  # `cancel` may have come just before this socket was known to it

    def _check_stop(self) -> None:
        if self._stop.is_set():
            raise _Stopped

    def run(self) -> Downloaded:
        """Raises what `download` says."""
        try:
            parts = urlsplit(self._url)
            possible = parts.scheme == "file" or (parts.scheme in ("http", "https") and parts.hostname)
        except ValueError:
            possible = False
        if not possible:
            raise Invalid(f"{self._url!r} cannot be downloaded", hint="give an http://, https:// or file:// URL")
        with _locked(self._partial) as file:
            if parts.scheme == "file":
                if parts.netloc not in ("", "localhost"):
                    raise Invalid(f"{self._url!r} is on another host", hint="write file:///directory/file")
                resumed = self._copy(Path(unquote(parts.path)), file)
            else:
                resumed = self._fetch(file)
            try:
                os.fsync(file.fileno())
                self._partial.replace(self._target)
                sync_path(self._target.parent)
            except OSError as error:
                raise self._unwritable(error) from error
        return Downloaded(self.done, resumed)

    def _copy(self, path: Path, file: io.FileIO) -> int:
        self._restart(file)
        try:
            # O_NONBLOCK: a pipe that nobody writes to must not hold us up
            source = open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")  # noqa: PTH123, SIM115
        except OSError as error:
            raise Invalid(f"{path} cannot be read: {error.strerror}", hint="check the path") from error
        with source:
            status = os.fstat(source.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise Invalid(f"{path} is not a regular file", hint="check the path")
            self._expect(status.st_size)
            self._pump(source, file)
        return 0

    def _fetch(self, file: io.FileIO) -> int:
        """Fetch what is missing, again after each break that brought something; returns where it went on."""
        self.done = began = file.seek(0, os.SEEK_END)
        why: Exception = _Broken("the server answers nothing that can be used")
        for _ in range(TRIES):
            before = self.done
            try:
                return min(began, self._attempt(file))
            except _Restart as error:
                self._restart(file)
                began, why = 0, error
            except _Broken as error:
                why = error
                if self.done <= before:
                    break
            self._check_stop()
        self._check_stop()
        raise DownloadFailed(f"the download of {self._url} broke: {why}", hint=_AGAIN) from why

    def _attempt(self, file: io.FileIO) -> int:
        """One request for what is missing; returns where its answer began."""
        request = urllib.request.Request(self._url, headers={"User-Agent": "banger", "Accept-Encoding": "identity"})
        if self.done:
            request.add_header("Range", f"bytes={self.done}-")
        with self._translated():
            try:
                reply = opener(self._connected).open(request, timeout=self._stall_s)
            except urllib.error.HTTPError as error:
                with error:
                    return self._refused(error)
            with reply:
                start = self._begin(file, reply.status, reply.headers)
                self._pump(reply, file)
        if self.total is not None and self.done < self.total:
            raise _Broken(f"the connection ended after {self.done} of {self.total} bytes")
        return start

    def _begin(self, file: io.FileIO, status: int, headers: Message) -> int:
        """Set the file and the counters to where this reply's body begins."""
        if status == 206:
            told = _CONTENT_RANGE.fullmatch(headers.get("Content-Range", ""))
            if not told or not told[1] or int(told[1]) != self.done:
                raise _Restart("the server sent another part than the one asked for")
            self._expect(int(told[2]))
            return self.done
        self._restart(file)
        length = headers.get("Content-Length", "")
        self._expect(int(length) if re.fullmatch("[0-9]{1,19}", length) else None)
        return 0

    def _restart(self, file: io.FileIO) -> None:
        file.truncate(0)
        file.seek(0)
        self.done, self.total = 0, None

    def _expect(self, total: int | None) -> None:
        """Take note of the whole length, and refuse at once what cannot end well."""
        self.total = total
        if total is None:
            return
        if total > self._limit:
            raise self._too_big(f"has {total} bytes")
        missing, free = total - self.done, shutil.disk_usage(self._partial.parent).free
        if missing > free:
            raise self._no_room(f"{missing} bytes are needed, {free} are free")

    def _pump(self, source: _Source, file: io.FileIO) -> None:
        """Copy until the source ends; `read1` returns what has come, so that nothing that came is lost."""
        while piece := source.read1(_PIECE):
            self._check_stop()
            if self.done + len(piece) > self._limit:
                raise self._too_big("goes on and on")
            try:
                _write(file, piece)
            except OSError as error:
                raise self._unwritable(error) from error
            self.done += len(piece)
        self._check_stop()

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        """The many ways in which a request can fail, as the few that a person can do something about."""
        try:
            yield
        except urllib.error.URLError as error:
            raise self._unreachable(error.reason) from error
        except TimeoutError as error:
            raise self._stalled() from error
        except (http.client.HTTPException, ValueError) as error:
            raise _Broken(f"the server does not speak HTTP ({type(error).__name__} {error})") from error
        except OSError as error:
            raise _Broken(error.strerror or str(error)) from error

    def _refused(self, error: urllib.error.HTTPError) -> int:
        """The answer to an error status: only that there is nothing more to fetch is none."""
        if error.code == 416 and self.done:
            told = _CONTENT_RANGE.fullmatch(error.headers.get("Content-Range", ""))
            if told and int(told[2]) == self.done <= self._limit:
                return self.done
            raise _Restart("the server has less than was fetched before")
        hint = "check the version and the mirror" if error.code in (403, 404, 410) else "try again later"
        raise DownloadFailed(f"the server answered {error.code} {error.reason} for {self._url}", hint=hint) from error

    def _unreachable(self, reason: object) -> BangerError:
        self._check_stop()
        if isinstance(reason, TimeoutError):
            return self._stalled()
        if isinstance(reason, ssl.SSLError):
            hint = "check this host's clock and its CA certificates (apt-get install ca-certificates)"
            return DownloadFailed(f"the server's TLS is not accepted: {reason}", hint=hint)
        host = urlsplit(self._url).hostname
        why = getattr(reason, "strerror", None) or reason
        return HostRequirement(
            f"this host has no way to {host}: {why}", hint="check the network and the proxy settings, or try a mirror"
        )

    def _stalled(self) -> Timeout:
        return Timeout(f"no byte came from {self._url} for {self._stall_s:g} s", hint=_AGAIN)

    def _too_big(self, what: str) -> DownloadFailed:
        self._partial.unlink(missing_ok=True)
        return DownloadFailed(
            f"{self._url} {what}, and at most {self._limit} bytes are taken", hint="check the URL; this is not the file"
        )

    def _unwritable(self, error: OSError) -> BangerError:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return self._no_room(error.strerror or "the disk is full")
        return HostRequirement(f"{self._partial} cannot be written: {error.strerror or error}", hint="check its disk")

    def _no_room(self, why: str) -> HostRequirement:
        # a full disk is no place to keep half a file
        self._partial.unlink(missing_ok=True)
        return HostRequirement(
            f"there is no room for the download: {why}",
            hint=f"free some space on the disk that holds {self._partial.parent}, or set BANGER_CACHE_DIR",
        )


def _write(file: io.FileIO, piece: bytes) -> None:
    rest = memoryview(piece)
    while rest:
        rest = rest[file.write(rest) :]


@contextlib.contextmanager
def _locked(partial: Path) -> Iterator[io.FileIO]:
    """The partial file, held against other downloads to the same target; an empty one does not stay."""
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        file = io.FileIO(os.open(partial, flags, 0o600), "r+")
    except OSError as error:
        raise HostRequirement(f"{partial} cannot be written: {error.strerror}", hint="check its directory") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # its name may have gone to another file, or to none, while nobody held the lock
            if not os.path.samestat(os.fstat(file.fileno()), partial.stat()):
                raise BlockingIOError
        except (BlockingIOError, FileNotFoundError) as error:
            raise Conflict(f"{partial.name} is being downloaded already", hint="wait until that has ended") from error
        try:
            yield file
        finally:
            if os.fstat(file.fileno()).st_size == 0:
                partial.unlink(missing_ok=True)
