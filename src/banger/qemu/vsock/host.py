"""The host's side: Firecracker's hybrid socket (Firecracker, docs/vsock.md).

A client of the listening socket sends `CONNECT <port>\\n` and reads `OK <host port>\\n`, then bytes;
if the guest refuses, it reads the end of the stream instead. A guest that connects to port P of
the host reaches whoever listens on `<path>_P`.

One difference: a client's `shutdown(SHUT_WR)` reaches the guest as a half-close, where Firecracker
closes the connection fully.
"""

import errno
import os
import re
import select
import socket

from banger.qemu.vsock.connection import Connection, State
from banger.qemu.vsock.packet import MASK, REQUEST, RESPONSE, SHUT_RCV, SHUT_SEND
from banger.qemu.vsock.streams import Streams

_LINE_MAX = 32
_LINE = re.compile(rb"connect[ \t]+([0-9]{1,10})[ \t]*\r?\n", re.IGNORECASE)
_ACCEPTS = 64  # in one turn
_NO_ROOM = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


def listen(path: str) -> socket.socket:
    """Bind and listen, mode 0600. Raises `OSError`; EADDRINUSE if the file exists."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        os.fchmod(sock.fileno(), 0o600)  # Linux gives the file the mode of the socket's inode
        sock.bind(path)
        sock.listen(256)
    except OSError:
        sock.close()
        raise
    return sock


class Host:
    """Clients: accepting them, their CONNECT lines, their events; and the way out for a guest."""

    def __init__(self, streams: Streams, epoll: select.epoll, listener: socket.socket, path: str) -> None:
        self._streams, self._epoll, self._listener, self._path = streams, epoll, listener, path
        self._resume()

    def _resume(self) -> None:
        self._epoll.register(self._listener, select.EPOLLIN)

    def accept(self) -> None:
        """Take new clients; beyond the limit of connections they are closed, as Firecracker does."""
        for _ in range(_ACCEPTS):
            try:
                sock, _address = self._listener.accept()
            except OSError as error:
                if error.errno in _NO_ROOM:
                    self._epoll.unregister(self._listener)
                    self._streams.after(self._streams.limits.accept_pause, self._resume)
                return
            if self._streams.full():
                sock.close()
                continue
            sock.setblocking(False)
            connection = self._streams.add(sock, State.LINE)
            self._streams.expire(connection, self._streams.limits.line_time)

    def event(self, connection: Connection, events: int) -> None:
        """epoll reported something about a client's socket."""
        connection.note(events)
        if connection.state is State.LINE:
            self._read_line(connection)
        elif connection.state is State.REQUESTED:
            if connection.gone:
                self._streams.drop(connection, reset=True)
        else:
            self._flow(connection)

    def _flow(self, connection: Connection) -> None:
        if connection.backlog:
            try:
                connection.flush()
            except OSError:
                self._streams.client_deaf(connection)
            self._streams.delivered(connection)
        if connection.state is not State.OPEN:
            return
        if connection.gone and (connection.host_shut & SHUT_SEND or connection.guest_shut & SHUT_RCV):
            self._streams.client_ended(connection)
        else:
            self._streams.wake(connection)

    def _read_line(self, connection: Connection) -> None:
        if connection.gone:
            self._streams.drop(connection)
        elif connection.readable and not self._streams.held:
            try:
                self._take_line(connection)
            except BlockingIOError:
                connection.readable = False
            except OSError:
                self._streams.drop(connection)

    def _take_line(self, connection: Connection) -> None:
        start = connection.sock.recv(_LINE_MAX, socket.MSG_PEEK)
        end = start.find(b"\n") + 1
        if not end:
            connection.readable = False
            if not start or len(start) >= _LINE_MAX:
                self._streams.drop(connection)
            return
        line = _LINE.fullmatch(connection.sock.recv(end))  # what is behind it stays in the socket
        if line is None or int(line[1]) > MASK:
            self._streams.drop(connection)
            return
        guest_port = int(line[1])
        self._streams.enter(connection, self._streams.free_port(guest_port), guest_port)
        connection.state = State.REQUESTED
        self._streams.expire(connection, self._streams.limits.request_time)
        self._streams.post(connection, REQUEST)

    def hold(self) -> None:
        """A guest was restored: hold new clients until it has handled its transport reset, then look for losses."""
        limits = self._streams.limits
        self._streams.held = True
        self._streams.after(limits.restore_hold, self._release)
        for seconds in limits.restore_probes:
            self._streams.after(seconds, self._streams.probe)

    def _release(self) -> None:
        self._streams.held = False
        for connection in list(self._streams.by_fd.values()):
            if connection.state is State.LINE:
                self._read_line(connection)

    def connect(self, host_port: int, guest_port: int) -> Connection | None:
        """Connect a guest to whoever listens on its port; None if nobody does."""
        if self._streams.full():
            return None
        try:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        except OSError:
            return None
        try:
            sock.connect(f"{self._path}_{host_port}")  # EAGAIN: its backlog is full
        except OSError:
            sock.close()
            return None
        connection = self._streams.add(sock, State.OPEN)
        connection.known = True
        self._streams.enter(connection, host_port, guest_port)
        self._streams.post(connection, RESPONSE)
        return connection
