"""One stream: a vsock connection on the guest's side, a Unix socket on the host's."""

import select
import socket
from enum import Enum

from banger.qemu.vsock.packet import MASK

EVENTS = select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET


class State(Enum):
    """The life of a connection."""

    LINE = "the client has not sent its CONNECT line"
    REQUESTED = "the guest has not answered the request"
    OPEN = "bytes may flow"
    CLOSING = "we sent a full shutdown and wait for the guest's RST"
    DRAINING = "the guest is gone, the client still has bytes to take"
    DEAD = "dropped"


class Connection:
    """State and counters; `Streams` decides what follows from them.

    The socket is watched edge-triggered, so `readable` and `writable` remember what epoll said
    until the kernel says otherwise: neither a guest without credit nor a slow client costs a turn.
    """

    __slots__ = (
        "announced",
        "asked",
        "backlog",
        "deadline",
        "fd",
        "forwarded",
        "gone",
        "guest_port",
        "guest_shut",
        "host_port",
        "host_shut",
        "known",
        "peer_allocated",
        "peer_forwarded",
        "pending",
        "readable",
        "received",
        "sent",
        "sock",
        "state",
        "writable",
    )

    def __init__(self, sock: socket.socket, state: State) -> None:
        self.sock, self.fd, self.state = sock, sock.fileno(), state
        self.host_port = self.guest_port = 0
        # To the guest: what it can hold, what it has taken, what we sent.
        self.peer_allocated = self.peer_forwarded = self.sent = 0
        # From the guest: what it sent, what the client took, what we told the guest of that.
        self.received = self.forwarded = self.announced = 0
        self.backlog = bytearray()
        self.readable = self.writable = self.gone = False
        self.guest_shut = self.host_shut = 0
        self.pending = 0  # bit `op` is set: a packet of that operation waits for a receive buffer
        self.known = False  # the guest has heard of this connection
        self.asked = False  # a CREDIT_REQUEST has no answer yet
        self.deadline: float | None = None

    def note(self, events: int) -> None:
        """Remember what epoll reported."""
        if events & (select.EPOLLHUP | select.EPOLLERR):
            self.gone = self.readable = self.writable = True
        if events & (select.EPOLLIN | select.EPOLLRDHUP):
            self.readable = True
        if events & select.EPOLLOUT:
            self.writable = True

    @property
    def credit(self) -> int:
        """Bytes that the guest can take now; not positive when it can take none."""
        return self.peer_allocated - ((self.sent - self.peer_forwarded) & MASK)

    def read_into(self, views: list[memoryview]) -> int | None:
        """Receive the client's bytes into guest pages: their number, 0 at its end, None if none are there."""
        try:
            size = self.sock.recv_into(views[0]) if len(views) == 1 else self.sock.recvmsg_into(views)[0]
        except BlockingIOError:
            self.readable = False
            return None
        except OSError:  # it closed with bytes of ours unread; all it sent has been read
            self.gone = True
            return 0
        self.sent = (self.sent + size) & MASK
        return size

    def deliver(self, data: memoryview) -> None:
        """Send guest bytes to the client and keep what it does not take. Raises `OSError` if it takes no more."""
        if not self.backlog:
            data = data[self._send(data) :]
        if data:
            self.backlog += data
            self.flush()

    def flush(self) -> None:
        """Send what was kept, as far as the client takes it. Raises `OSError` if it takes no more."""
        while self.backlog and self.writable:
            with memoryview(self.backlog) as view:
                size = self._send(view)
            del self.backlog[:size]

    def _send(self, data: memoryview) -> int:
        if not self.writable:
            return 0
        try:
            size = self.sock.send(data)
        except BlockingIOError:
            self.writable = False
            return 0
        self.forwarded = (self.forwarded + size) & MASK
        return size

    def discard(self) -> None:
        """Nobody reads the guest's bytes any more: forget them, but keep the counters honest."""
        self.backlog.clear()
        self.forwarded = self.received

    def shut(self, how: int) -> None:
        """`socket.shutdown` on a client that may be gone already."""
        try:
            self.sock.shutdown(how)
        except OSError:
            self.gone = True
