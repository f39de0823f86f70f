"""Trees of files between this host and a guest, over the agent's POST /files (docs/guest.md).

How much a guest sends is for the person to judge, who asked for it: a full disk and Ctrl-C end it. How long it may be
silent is bounded.
"""

import errno
import json
import os
import select
import socket
from collections.abc import Callable
from types import TracebackType
from typing import NamedTuple, Self

from banger.client.guest import upgrade
from banger.guest import protocol, tree
from banger.model.documents import VmDocument
from banger.model.errors import BangerError, GuestUnreachable, NotFound
from banger.model.text import harmless

SILENCE_S = 60.0  # without a byte from the guest, or one taken by it
_RECEIVE = 262144
_FULL = (errno.ENOSPC, errno.EDQUOT)

Progress = Callable[[int, int], None]  # entries and bytes so far


class Copied(NamedTuple):
    """What a copy did: bytes are data without holes, `skipped` has a line for each thing left out on either side."""

    entries: int
    bytes: int
    skipped: list[str]


class Place(NamedTuple):
    """A path in a guest, and what is to be said of it: fields of POST /files."""

    vm: VmDocument
    path: str
    contents: bool
    keep_owners: bool = False
    user: str | None = None


def upload(source: str, place: Place, progress: Progress) -> Copied:
    """Copy a local file or tree into a guest. Raises `NotFound`, `GuestUnreachable`, `BangerError`."""
    path = os.fsencode(source)
    with _Stream(place, "write") as stream:
        try:
            packed = tree.pack(path, stream.send, contents=place.contents, progress=progress)
        except tree.TreeError as error:
            raise _failure(error.text, error.errno, "this host's disk is full") from error
        stream.end()
        unpacked = stream.result()
    return Copied(unpacked.entries, packed.bytes, [*_lines(packed), *unpacked.skipped])


def upload_archive(source: int, place: Place, progress: Progress) -> Copied:
    """Unpack the tar archive that a descriptor gives in a guest. Errors as `upload`."""
    total = 0
    with _Stream(place, "write") as stream:
        while data := stream.read_beside(source):
            stream.send(data)
            stream.flush()  # what comes next may take its time
            total += len(data)
            progress(0, total)
        stream.end()
        return stream.result()


def download(place: Place, target: str, name: str, progress: Progress) -> Copied:
    """Copy a guest's file or tree to a local path; inside a directory it is called `name`, whatever the guest says.

    Errors as `upload`.
    """
    owner = tree.KEEP if place.keep_owners else tree.UNPACKER
    with _Stream(place, "read") as stream:
        try:
            unpacked = tree.unpack(
                stream.read,
                os.fsencode(target),
                contents=place.contents,
                name=os.fsencode(name),
                owner=owner,
                progress=progress,
            )
        except tree.TreeError as error:
            if not error.errno:  # nothing of this host's: the archive is wrong
                vm = place.vm["name"]
                raise BangerError(f"{vm} sent what cannot be unpacked: {harmless(error.text)}") from error
            raise _failure(harmless(error.text), error.errno, "this host's disk is full") from error
        packed = stream.result()
    return Copied(unpacked.entries, unpacked.bytes, [*packed.skipped, *_lines(unpacked)])


def download_archive(place: Place, target: int, progress: Progress) -> Copied:
    """Write the tar archive of a guest's file or tree to a descriptor. Errors as `upload`, and OSError of its own."""
    total = 0
    with _Stream(place, "read") as stream:
        while data := stream.read(protocol.MAX_PAYLOAD):
            view = memoryview(data)
            while view:
                view = view[os.write(target, view) :]
            total += len(data)
            progress(0, total)
        return stream.result()


def _lines(report: tree.Report) -> list[str]:
    return [harmless(line) for line in report.skipped_lines()]


def _failure(text: str, number: int, full: str) -> BangerError:
    """The error for an errno of either side."""
    if number == errno.ENOENT:
        return NotFound(text, hint="check the path; the directory that shall hold the copy must exist")
    if number in _FULL:
        return BangerError(text, hint=f"{full}: make room, then copy again")
    return BangerError(text)


class _Stream:
    """Frames to and from the agent. Closing it ends the copy on the other side too."""

    def __init__(self, place: Place, mode: str) -> None:
        self._name = place.vm["name"]
        document = {
            "mode": mode,
            "path": place.path or ".",
            "as": "contents" if place.contents else "child",
            "owner": "keep" if place.keep_owners else "user",
            "user": place.user,
        }
        self._socket: socket.socket = upgrade(place.vm, "/files", protocol.FILES_UPGRADE, document)
        self._socket.setblocking(False)
        self._frames = protocol.Decoder()
        self._unsent = bytearray()
        self._present = memoryview(b"")
        self._result: Copied | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    def send(self, data: bytes) -> None:
        """Send a part of the archive."""
        self._unsent += data
        while len(self._unsent) >= protocol.MAX_PAYLOAD:
            self._frame(bytes(self._unsent[: protocol.MAX_PAYLOAD]))
            del self._unsent[: protocol.MAX_PAYLOAD]

    def flush(self) -> None:
        if self._unsent:
            self._frame(bytes(self._unsent))
            self._unsent.clear()

    def end(self) -> None:
        """Send what is left, and that it is all."""
        self.flush()
        self._frame(b"")

    def _frame(self, payload: bytes) -> None:
        view = memoryview(protocol.encode(protocol.STDIN, payload))
        while view:
            if self._wait(select.POLLIN | select.POLLOUT) & ~select.POLLOUT:
                self._answer_before_the_end()
                continue
            try:
                view = view[self._socket.send(view) :]
            except BlockingIOError:
                continue
            except OSError as error:
                raise self._unreachable(f"it closed the stream: {error.strerror}") from error

    def read_beside(self, descriptor: int) -> bytes:
        """Bytes of a local descriptor, however long they take, unless the guest ends the copy before they come."""
        poller = select.poll()
        poller.register(descriptor, select.POLLIN)
        poller.register(self._socket, select.POLLIN)
        while True:
            ready = dict(poller.poll())
            if self._socket.fileno() in ready:
                self._answer_before_the_end()
            if descriptor in ready:
                return os.read(descriptor, protocol.MAX_PAYLOAD)

    def _answer_before_the_end(self) -> None:
        """What the guest says while we still send can only be why it does not go on."""
        self._receive()
        if (frame := self._next()) is not None:
            self._take(*frame)
            raise self._unreachable("it ended the copy before all was sent")

    def read(self, count: int) -> bytes:
        """1 to `count` bytes of the archive, none at its end, when `result` is known."""
        while not self._present and self._result is None:
            self._turn()
        data = bytes(self._present[:count])
        self._present = self._present[count:]
        return data

    def result(self) -> Copied:
        """Wait for the guest's last word."""
        while self._result is None:
            self._turn()
        return self._result

    def _turn(self) -> None:
        while (frame := self._next()) is None:
            self._wait(select.POLLIN)
            self._receive()
        self._take(*frame)

    def _take(self, kind: int, payload: bytes) -> None:
        if kind == protocol.STDOUT:
            self._present = memoryview(payload)
        elif kind == protocol.EXIT:
            self._result = self._outcome(payload)
        else:
            raise self._unreachable(f"it sent a frame of kind {kind}")

    def _outcome(self, payload: bytes) -> Copied:
        """The document of the last frame. Raises what it reports."""
        try:
            document = json.loads(payload)
            if "error" in document:
                number = document.get("errno", 0)
                text = f"{self._name}: {harmless(str(document['error']))}"
                raise _failure(text, number if isinstance(number, int) else 0, "the guest's disk is full")
            skipped = [harmless(str(line)) for line in list(document["skipped"])[: tree.SKIPPED_MAX]]
            return Copied(int(document["entries"]), int(document["bytes"]), skipped)
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
            raise self._unreachable("its last word makes no sense") from error

    def _next(self) -> tuple[int, bytes] | None:
        try:
            return self._frames.next()
        except protocol.ProtocolError as error:
            raise self._unreachable(f"it broke the protocol: {error}") from error

    def _receive(self) -> None:
        try:
            data = self._socket.recv(_RECEIVE)
        except BlockingIOError:
            return
        except OSError as error:
            raise self._unreachable(f"it closed the stream: {error.strerror}") from error
        if not data:
            raise self._unreachable("it closed the stream before the copy was complete")
        self._frames.feed(data)

    def _wait(self, events: int) -> int:
        poller = select.poll()
        poller.register(self._socket, events)
        ready = poller.poll(SILENCE_S * 1000)
        if not ready:
            raise self._unreachable(f"it has been silent for {SILENCE_S:g} s")
        return ready[0][1]

    def _unreachable(self, why: str) -> GuestUnreachable:
        return GuestUnreachable(f"the copy with {self._name} broke off: {why}", hint=f"banger vm health {self._name}")
