"""Carries frames between the host and one process until both are done. One thread, one poll, bounded buffers.

Backpressure goes both ways: output is read from the process only when the last frame has left, and frames are
read from the host only while less than `STDIN_LIMIT` waits for the process.
"""

import os
from _socket import socket
from select import POLLERR, POLLHUP, POLLIN, POLLNVAL, POLLOUT, POLLRDHUP, poll
from time import monotonic

from banger.guest import protocol
from banger.guest.agent.control import apply_resize, apply_signal
from banger.guest.agent.sessions import end_session
from banger.guest.agent.signals import SIGHUP, SIGTERM
from banger.guest.agent.spawn import Child

STDIN_LIMIT = 1024 * 1024
SILENCE_SECONDS = 0.5  # how long output held open by others is awaited after the process has ended
GRACE_SECONDS = 1.0  # between the polite signal and SIGKILL
_END_OF_INPUT = b"\x04"  # what a terminal's line discipline takes for end of file

_BROKEN = POLLHUP | POLLRDHUP | POLLERR | POLLNVAL


class HostGone(Exception):
    """The host closed the stream or sent something that is not a frame."""


class Relay:
    """One exec. `run` returns the EXIT document; everything of the process is closed by then."""

    def __init__(self, sock: socket, child: Child, rest: bytes, timeout_s: "float | None") -> None:
        self._sock = sock
        self._child = child
        self._frames = protocol.Decoder(rest)
        self._deadline = None if timeout_s is None else monotonic() + timeout_s
        self._buffer = bytearray(protocol.HEADER.size + protocol.MAX_PAYLOAD)
        self._out = memoryview(self._buffer)[:0]
        self._stdin: int | None = child.stdin
        self._waiting = bytearray()
        self._stdin_ends = False
        self._sources = [(child.stdout, protocol.STDOUT)]
        if child.stderr >= 0:
            self._sources.append((child.stderr, protocol.STDERR))
        self._exited = False
        self._timed_out = False
        self._last_output = 0.0

    def run(self) -> "dict[str, object]":
        """Relay to the end. Raises `HostGone`, after the whole session has been killed."""
        self._sock.setblocking(False)
        for fd in {self._child.stdin, self._child.stdout, self._child.stderr} - {-1}:
            os.set_blocking(fd, False)
        try:
            self._take_frames()
            while not self._finished():
                self._turn()
        except (HostGone, OSError) as error:
            end_session(self._child, SIGHUP, GRACE_SECONDS)
            raise HostGone(str(error)) from error
        finally:
            status = self._close()
        if self._timed_out:
            return {"timeout": True}
        return {"signal": os.WTERMSIG(status)} if os.WIFSIGNALED(status) else {"status": os.WEXITSTATUS(status)}

    def _finished(self) -> bool:
        return self._exited and not self._out and not self._sources

    def _close(self) -> int:
        """Close everything and reap the process, which keeps its session's number until then."""
        for fd in {self._child.stdout, self._child.stderr, self._child.pidfd, self._stdin} - {-1, None}:
            os.close(fd)  # type: ignore[arg-type]
        return os.waitpid(self._child.pid, 0)[1]

    def _turn(self) -> None:
        """Wait for the next event and handle what is ready."""
        poller = poll()
        room = len(self._waiting) < STDIN_LIMIT
        poller.register(self._sock, POLLRDHUP | (POLLIN if room else 0) | (POLLOUT if self._out else 0))
        if not self._out:
            for fd, _kind in self._sources:
                poller.register(fd, POLLIN)
        if self._stdin is not None and self._waiting and (not self._child.tty or self._out):
            poller.register(self._stdin, POLLOUT)
        elif self._stdin is not None and self._waiting:
            poller.register(self._stdin, POLLIN | POLLOUT)  # the terminal: one descriptor for both
        if not self._exited:
            poller.register(self._child.pidfd, POLLIN)
        ready = dict(poller.poll(self._milliseconds()))
        self._check_deadline()
        self._serve_host(ready.get(self._sock.fileno(), 0))
        if self._child.pidfd in ready and not self._exited:
            self._exited, self._last_output = True, monotonic()
        if self._stdin is not None and ready.get(self._stdin, 0) & ~POLLIN:
            self._feed_process()
        self._read_outputs(ready)

    def _milliseconds(self) -> "int | None":
        waits = []
        if self._deadline is not None and not self._exited:
            waits.append(self._deadline)
        if self._exited and not self._out:
            waits.append(self._last_output + SILENCE_SECONDS)
        return max(0, int((min(waits) - monotonic()) * 1000) + 1) if waits else None

    def _check_deadline(self) -> None:
        if self._exited or self._deadline is None or monotonic() < self._deadline:
            return
        end_session(self._child, SIGTERM, GRACE_SECONDS)
        self._exited = self._timed_out = True
        self._last_output = monotonic()

    def _serve_host(self, events: int) -> None:
        if events & _BROKEN:
            raise HostGone("the host closed the stream")
        if events & POLLOUT:
            self._send()
        if events & POLLIN:
            data = self._sock.recv(protocol.MAX_PAYLOAD)
            if not data:
                raise HostGone("the host closed the stream")
            self._frames.feed(data)
            self._take_frames()

    def _take_frames(self) -> None:
        try:
            while (frame := self._frames.next()) is not None:
                self._handle(*frame)
        except protocol.ProtocolError as error:
            raise HostGone(str(error)) from None
        if self._stdin_ends and not self._waiting:
            self._end_stdin()

    def _handle(self, kind: int, payload: bytes) -> None:
        if kind == protocol.STDIN:
            self._take_stdin(payload)
        elif kind == protocol.RESIZE:
            apply_resize(self._child, payload)
        elif kind == protocol.SIGNAL:
            apply_signal(self._child, payload)
        else:
            raise HostGone(f"the host sent a frame of kind {kind}")

    def _take_stdin(self, payload: bytes) -> None:
        if self._stdin is None or self._stdin_ends:
            return  # the process no longer reads
        self._waiting += payload
        if not payload:
            self._stdin_ends = True
            if self._child.tty:
                self._waiting += _END_OF_INPUT

    def _feed_process(self) -> None:
        assert self._stdin is not None
        try:
            with memoryview(self._waiting) as waiting:
                written = os.write(self._stdin, waiting[: protocol.MAX_PAYLOAD])
            del self._waiting[:written]
        except BlockingIOError:
            return
        except OSError:  # it closed its input
            self._end_stdin()
        if self._stdin_ends and not self._waiting:
            self._end_stdin()

    def _end_stdin(self) -> None:
        self._waiting.clear()
        if self._stdin is not None and not self._child.tty:  # a terminal's descriptor also carries the output
            os.close(self._stdin)
        self._stdin = None

    def _read_outputs(self, ready: "dict[int, int]") -> None:
        silent = not self._out and not any(fd in ready for fd, _kind in self._sources)
        if self._exited and silent and monotonic() - self._last_output >= SILENCE_SECONDS:
            self._sources.clear()  # something that still runs holds them open
        for source in list(self._sources):
            if source[0] in ready and not self._out:
                self._sources.remove(source)
                if self._read_output(*source):
                    self._sources.append(source)  # to the end: the two take turns

    def _read_output(self, fd: int, kind: int) -> bool:
        """Send on what is there; False at end of file."""
        start = protocol.HEADER.size
        try:
            count = os.readv(fd, [memoryview(self._buffer)[start:]])
        except BlockingIOError:
            return True
        except OSError:  # EIO: nobody has the terminal open any more
            return False
        if count == 0:
            return False
        protocol.HEADER.pack_into(self._buffer, 0, kind, count)
        self._out = memoryview(self._buffer)[: start + count]
        self._last_output = monotonic()
        self._send()
        return True

    def _send(self) -> None:
        try:
            self._out = self._out[self._sock.send(self._out) :]
        except BlockingIOError:
            return
        if not self._out:
            self._last_output = monotonic()
