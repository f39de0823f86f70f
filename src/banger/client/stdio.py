"""Joining two descriptors with a stream: one poll loop, a bounded buffer each way, and few imports."""

import contextlib
import os
import select
import socket
from collections.abc import Iterator

CHUNK = 256 * 1024
_BROKEN = select.POLLERR | select.POLLHUP | select.POLLNVAL


def join(stream: socket.socket, source: int, sink: int) -> None:
    """Carry `source` to the stream and the stream to `sink`, until the stream ends or nobody reads the sink.

    The end of the source is passed on, and is not the end of it all.
    """
    stream.setblocking(False)
    with _nonblocking(source), _nonblocking(sink):
        relay = _Relay(stream, source, sink)
        while relay.turn():
            pass


@contextlib.contextmanager
def _nonblocking(descriptor: int) -> Iterator[None]:
    """A terminal is left as it is: its open file is also the shell's."""
    if os.isatty(descriptor):
        yield
        return
    before = os.get_blocking(descriptor)
    os.set_blocking(descriptor, False)
    try:
        yield
    finally:
        os.set_blocking(descriptor, before)


class _Relay:
    """Each way holds at most one chunk: nothing more is read before that has left."""

    def __init__(self, stream: socket.socket, source: int, sink: int) -> None:
        self._stream = stream
        self._source: int | None = source
        self._sink = sink
        self._up = memoryview(b"")
        self._down = memoryview(b"")
        self._ended = False

    def turn(self) -> bool:
        """Wait for the next event and handle it; False when it is over."""
        wanted = {
            self._stream.fileno(): (select.POLLIN if not (self._down or self._ended) else 0)
            | (select.POLLOUT if self._up else 0),
            self._source: select.POLLIN if not self._up else 0,
        }
        poller = select.poll()
        for descriptor, events in wanted.items():
            if descriptor is not None and events:  # without events a hang-up would wake us for ever
                poller.register(descriptor, events)
        # the sink is always watched: nobody may read it any more
        poller.register(self._sink, select.POLLOUT if self._down else 0)
        ready = dict(poller.poll())
        if self._source in ready:
            self._read()
        if self._stream.fileno() in ready:
            self._exchange()
        if self._down:
            return self._write()
        return not (self._ended or ready.get(self._sink, 0) & _BROKEN)

    def _read(self) -> None:
        assert self._source is not None
        try:
            data = os.read(self._source, CHUNK)
        except BlockingIOError:
            return
        self._up = memoryview(data)
        if not data:
            self._source = None
            with contextlib.suppress(OSError):  # the guest has gone; what it sent is still to be read
                self._stream.shutdown(socket.SHUT_WR)

    def _exchange(self) -> None:
        """Send and receive what is possible."""
        if self._up:
            try:
                self._up = self._up[self._stream.send(self._up) :]
            except BlockingIOError:
                pass
            except OSError:  # the guest takes nothing more
                self._up, self._source = memoryview(b""), None
        if not self._down and not self._ended:
            try:
                data = self._stream.recv(CHUNK)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            self._down, self._ended = memoryview(data), not data

    def _write(self) -> bool:
        """False when nobody reads the sink."""
        try:
            self._down = self._down[os.write(self._sink, self._down) :]
        except BlockingIOError:
            pass
        except OSError:
            return False
        return True
