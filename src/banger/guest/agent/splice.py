"""Carries bytes between two stream sockets, both ways, until both directions have ended or a side has gone.

Each direction has one buffer, which is filled only when it is empty: who does not read stops who writes. The end
of one direction is passed on as such while the other goes on.
"""

from _socket import SHUT_WR, socket
from select import POLLERR, POLLHUP, POLLIN, POLLOUT, poll

BUFFER = 256 * 1024
CHECK_MILLISECONDS = 1000  # how often a host that has ended its direction is asked whether it is still there


class _Direction:
    """Bytes from `source` to `sink`."""

    __slots__ = ("_buffer", "ended", "left", "sink", "source")

    def __init__(self, source: socket, sink: socket, first: bytes = b"") -> None:
        self.source = source
        self.sink = sink
        self._buffer = memoryview(bytearray(BUFFER))
        self.left = memoryview(first)  # read, and not yet written
        self.ended = False  # the sink has been told of the source's end

    def step(self) -> None:
        """Read if there is room, write what there is. A side that broke ends the direction."""
        if self.ended or not (self.left or self._read()):
            return
        try:
            self.left = self.left[self.sink.send(self.left) :]
        except BlockingIOError:
            return
        except OSError:  # the sink takes no more; what it has sent may still be on its way
            self.left = self.left[:0]
            self.ended = True

    def _read(self) -> bool:
        """Whether there is something to write now; at the source's end the sink is told of it."""
        try:
            count = self.source.recv_into(self._buffer)
        except BlockingIOError:
            return False
        except OSError:
            count = 0
        if count == 0:
            self.ended = True
            try:
                self.sink.shutdown(SHUT_WR)
            except OSError:
                pass  # it has broken already
        self.left = self._buffer[:count]
        return count > 0


def splice(host: socket, peer: socket, first: bytes = b"") -> None:
    """Join the host's stream and a TCP connection; `first` came from the host already. Raises OSError when it left."""
    host.setblocking(False)
    peer.setblocking(False)
    out, back = _Direction(host, peer, first), _Direction(peer, host)
    poller = poll()
    watched: dict[int, int] = {}
    while not (out.ended and back.ended):
        _watch(poller, watched, host.fileno(), _events(out, back))
        _watch(poller, watched, peer.fileno(), _events(back, out))
        ready = poller.poll(CHECK_MILLISECONDS if out.ended else None)
        if out.ended and not back.left:
            _check(host)
        for fd, events in ready:
            near, far = (out, back) if fd == host.fileno() else (back, out)
            if events & (POLLIN | POLLHUP | POLLERR):
                near.step()
            if events & (POLLOUT | POLLHUP | POLLERR):
                far.step()


def _events(incoming: _Direction, outgoing: _Direction) -> int:
    """What to wait for at a socket that is the source of one direction and the sink of the other."""
    read = POLLIN if not incoming.ended and not incoming.left else 0
    return read | (POLLOUT if outgoing.left else 0)


def _watch(poller: poll, watched: "dict[int, int]", fd: int, events: int) -> None:
    """Let poll wait for `events`, or leave the socket out: a hang-up is reported unasked, again and again."""
    if watched.get(fd, 0) == events:
        return
    if events:
        poller.register(fd, events)
    else:
        poller.unregister(fd)
    watched[fd] = events


def _check(host: socket) -> None:
    """Raise OSError when the host is gone altogether, and not only done with sending.

    On vsock both look the same to poll, and only sending tells them apart, even of nothing; a Unix socket's
    hang-up shows in poll.
    """
    poller = poll()
    poller.register(host, 0)
    if poller.poll(0):
        raise ConnectionError("the host has left")
    host.send(b"")
