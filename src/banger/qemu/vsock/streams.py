"""All connections: who is open, who has something to say to the guest, and what ends when."""

import heapq
import itertools
import math
import select
import socket
import time
from collections import OrderedDict, deque
from collections.abc import Callable

from banger.qemu.vsock.connection import EVENTS, Connection, State
from banger.qemu.vsock.limits import Limits
from banger.qemu.vsock.packet import (
    CREDIT_REQUEST,
    CREDIT_UPDATE,
    HOST_CID,
    MASK,
    RST,
    SHUT_BOTH,
    SHUT_RCV,
    SHUT_SEND,
    SHUTDOWN,
    STREAM,
    Header,
)

_FIRST_HOST_PORT = 1 << 30  # as Firecracker numbers the host's side


class Streams:
    """The table of connections, and the steps of a connection's life that both sides share.

    Memory is bounded by the number of connections: each waits at most once in `ready`, with its
    packets as bits, and `resets` grows only by packets that a receive buffer or the guest paid for.
    """

    def __init__(self, epoll: select.epoll, guest_cid: int, limits: Limits) -> None:
        self._epoll, self.guest_cid, self.limits = epoll, guest_cid, limits
        self.by_fd: dict[int, Connection] = {}
        self._by_ports: dict[tuple[int, int], Connection] = {}
        self.ready: OrderedDict[Connection, None] = OrderedDict()
        self.resets: deque[bytes] = deque()
        self.total = 0
        self.held = False
        self._next_port = 0
        self._sweep_at = math.inf
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._sequence = itertools.count()

    # The table

    def add(self, sock: socket.socket, state: State) -> Connection:
        """Take over a socket."""
        connection = Connection(sock, state)
        self.by_fd[connection.fd] = connection
        self.total += 1
        self._epoll.register(sock, EVENTS)
        return connection

    def full(self) -> bool:
        return len(self.by_fd) >= self.limits.connections

    def enter(self, connection: Connection, host_port: int, guest_port: int) -> None:
        """Give a connection its ports."""
        connection.host_port, connection.guest_port = host_port, guest_port
        self._by_ports[host_port, guest_port] = connection

    def find(self, host_port: int, guest_port: int) -> Connection | None:
        return self._by_ports.get((host_port, guest_port))

    def free_port(self, guest_port: int) -> int:
        """A host port that is not in use towards this guest port."""
        while True:
            port = _FIRST_HOST_PORT | self._next_port
            self._next_port = (self._next_port + 1) % _FIRST_HOST_PORT
            if (port, guest_port) not in self._by_ports:
                return port

    def forget_guest(self, connection: Connection) -> None:
        """The guest has ended the connection and may reuse its ports."""
        if self._by_ports.get((connection.host_port, connection.guest_port)) is connection:
            del self._by_ports[connection.host_port, connection.guest_port]
        self.ready.pop(connection, None)
        connection.pending, connection.known = 0, False

    def drop(self, connection: Connection, *, reset: bool = False) -> None:
        """End a connection at once; `reset` tells the guest, if it has heard of it."""
        if connection.state is State.DEAD:
            return
        if reset and connection.known:
            self.reset(HOST_CID, connection.host_port, connection.guest_port)
        self.forget_guest(connection)
        connection.state = State.DEAD
        del self.by_fd[connection.fd]
        connection.sock.close()  # this takes it out of the epoll too

    def transport_reset(self) -> None:
        """The guest's driver started afresh: its sockets are gone. What it never heard of may still succeed."""
        for connection in list(self.by_fd.values()):
            if connection.known or connection.state is State.DRAINING:
                self.drop(connection)
        self.resets.clear()

    def close(self) -> None:
        for connection in list(self.by_fd.values()):
            self.drop(connection)
        self.resets.clear()
        self._timers.clear()

    # Towards the guest

    def wake(self, connection: Connection) -> None:
        """The connection may have something for the guest."""
        self.ready[connection] = None

    def post(self, connection: Connection, op: int) -> None:
        """Queue a control packet."""
        connection.pending |= 1 << op
        self.ready[connection] = None

    def reset(self, src_cid: int, host_port: int, guest_port: int, kind: int = STREAM) -> None:
        """Queue an RST."""
        header = Header(src_cid, self.guest_cid, host_port, guest_port, 0, kind, RST)
        self.resets.append(header.pack())

    # A connection's end

    def client_ended(self, connection: Connection) -> None:
        """The client sends no more. A half-close stays one; a client that is gone closes both directions."""
        connection.host_shut |= SHUT_BOTH if connection.gone else SHUT_SEND
        self._announce_shutdown(connection)

    def client_deaf(self, connection: Connection) -> None:
        """The client takes no more; what it still sends goes through."""
        connection.discard()
        if connection.state is State.DRAINING:
            self.drop(connection)
        elif connection.state is State.OPEN:
            connection.host_shut |= SHUT_RCV
            self._announce_shutdown(connection)

    def _announce_shutdown(self, connection: Connection) -> None:
        if connection.host_shut & connection.guest_shut & SHUT_SEND and not connection.backlog:
            connection.host_shut = SHUT_BOTH
        if connection.host_shut == SHUT_BOTH:
            connection.state = State.CLOSING
            self.expire(connection, self.limits.close_time)
        self.post(connection, SHUTDOWN)

    def delivered(self, connection: Connection) -> None:
        """Guest bytes moved on, or the guest shut down: return credit, and finish what waited for it."""
        if connection.state is State.OPEN:
            freed = (connection.forwarded - connection.announced) & MASK
            if freed >= self.limits.buffer // 4:
                self.post(connection, CREDIT_UPDATE)
        if connection.backlog or connection.state is State.DEAD:
            return
        if connection.state is State.DRAINING:
            self.drop(connection)
        elif connection.guest_shut == SHUT_BOTH:
            self.drop(connection, reset=True)  # a clean end: the RST acknowledges it
        elif connection.guest_shut & SHUT_SEND and connection.state is State.OPEN:
            connection.shut(socket.SHUT_WR)
            if connection.host_shut & SHUT_SEND:
                self._announce_shutdown(connection)

    # Time

    def expire(self, connection: Connection, seconds: float) -> None:
        """End the connection then, unless its deadline is moved or cleared."""
        connection.deadline = time.monotonic() + seconds
        self._sweep_at = min(self._sweep_at, connection.deadline)

    def after(self, seconds: float, call: Callable[[], None]) -> None:
        heapq.heappush(self._timers, (time.monotonic() + seconds, next(self._sequence), call))

    def next_deadline(self) -> float:
        """When `tick` has something to do (`time.monotonic`), or infinity."""
        return min(self._sweep_at, self._timers[0][0] if self._timers else math.inf)

    def tick(self) -> None:
        """Do what is due."""
        now = time.monotonic()
        while self._timers and self._timers[0][0] <= now:
            heapq.heappop(self._timers)[2]()
        if self._sweep_at > now:
            return
        self._sweep_at = math.inf
        for connection in list(self.by_fd.values()):
            if connection.deadline is not None and connection.deadline <= now:
                self.drop(connection, reset=True)
            elif connection.deadline is not None:
                self._sweep_at = min(self._sweep_at, connection.deadline)

    def probe(self) -> None:
        """Ask every open connection of the guest for its credit: one that the guest lost is answered by RST."""
        for connection in self.by_fd.values():
            if connection.state is State.OPEN:
                self.post(connection, CREDIT_REQUEST)
