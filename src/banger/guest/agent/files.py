"""POST /files: a tree of files out of the guest, or into it, as a tar stream in frames.

It runs in the connection's thread, with the agent's rights: who may talk to the agent may do all that root may.
"""

import os
from _socket import socket

from banger.guest import protocol, tree
from banger.guest.agent import http1
from banger.guest.agent.command import find_account
from banger.guest.agent.jsonlite import encode

LINGER_SECONDS = 60.0  # for the host to read the rest and close
_FIELDS = frozenset({"mode", "path", "as", "owner", "user"})


class HostGone(Exception):
    """The host closed the stream or sent something that is not a frame of this protocol."""


class Order:
    """A checked request."""

    __slots__ = ("contents", "owner", "path", "reading")

    def __init__(self, path: bytes, owner: tree.Owner) -> None:
        self.path = path
        self.owner = owner
        self.reading = False
        self.contents = False


def parse(body: bytes) -> Order:
    """The order in a request body. Raises `Refused` 400 with the field and the reason."""
    document = http1.document(body, _FIELDS)
    account = find_account(document.get("user"))
    keep = _choice(document, "owner", "user", "keep") == "keep"
    owner = tree.KEEP if keep else tree.Owner(account.uid, account.gid)
    order = Order(_path(document.get("path"), account.home), owner)
    order.reading = _choice(document, "mode", "", "read", "write") == "read"
    order.contents = _choice(document, "as", "child", "contents") == "contents"
    return order


def _choice(document: "dict[str, object]", field: str, default: str, *others: str) -> str:
    value = document.get(field, default)
    allowed = [word for word in (default, *others) if word]
    if not isinstance(value, str) or value not in allowed:
        raise http1.Refused(400, f"{field} is one of {', '.join(allowed)}")
    return value


def _path(value: object, home: str) -> bytes:
    if not isinstance(value, str) or not value or "\0" in value:
        raise http1.Refused(400, "path is not a string without NUL")
    try:
        return os.path.join(os.fsencode(home), value.encode("utf-8", "surrogateescape"))
    except UnicodeEncodeError:
        raise http1.Refused(400, "path holds a lone surrogate") from None


def copy(sock: socket, request: http1.Request) -> None:
    """Answer 101, copy, end with an EXIT frame. Raises `Refused` before the 101, OSError."""
    order = parse(request.body)
    http1.switch_protocols(sock, protocol.FILES_UPGRADE)
    sock.settimeout(None)  # the host may take its time: a pager, a slow disk, a stopped terminal
    try:
        document = _send(sock, order) if order.reading else _receive(sock, order, request.rest)
    except tree.TreeError as error:
        document = {"error": error.text, "errno": error.errno}
    except HostGone:
        return
    sock.sendall(protocol.encode(protocol.EXIT, encode(document).encode()))
    http1.finish(sock, LINGER_SECONDS)


def _send(sock: socket, order: Order) -> "dict[str, object]":
    outlet = _Outlet(sock)
    report = tree.pack(order.path, outlet.write, contents=order.contents)
    outlet.flush()
    return report.document()


def _receive(sock: socket, order: Order, rest: bytes) -> "dict[str, object]":
    inlet = _Inlet(sock, rest)
    return tree.unpack(inlet.read, order.path, contents=order.contents, owner=order.owner).document()


class _Outlet:
    """Gathers what is written into frames of full length, copying each byte once: copies are slow in emulation."""

    def __init__(self, sock: socket) -> None:
        self._sock = sock
        self._frame = bytearray(protocol.HEADER.size + protocol.MAX_PAYLOAD)
        self._end = protocol.HEADER.size

    def write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            part = view[: len(self._frame) - self._end]
            self._frame[self._end : self._end + len(part)] = part
            self._end += len(part)
            view = view[len(part) :]
            if self._end == len(self._frame):
                self.flush()

    def flush(self) -> None:
        """Send what waits, if anything does. Raises `HostGone`."""
        length = self._end - protocol.HEADER.size
        if not length:
            return
        protocol.HEADER.pack_into(self._frame, 0, protocol.STDOUT, length)
        try:
            self._sock.sendall(memoryview(self._frame)[: self._end])
        except OSError as error:
            raise HostGone(str(error)) from None
        self._end = protocol.HEADER.size


class _Inlet:
    """The payloads of the host's STDIN frames as one stream, which an empty one ends."""

    def __init__(self, sock: socket, rest: bytes) -> None:
        self._sock = sock
        self._rest = rest
        self._left = 0  # bytes of the present frame
        self._ended = False
        # one for all: a new object for each receipt, of whatever size came, would fragment the memory file by file
        self._buffer = memoryview(bytearray(protocol.MAX_PAYLOAD))

    def read(self, count: int) -> "bytes | memoryview":
        """1 to `count` bytes, none at the end; good until the next call. Raises `HostGone`."""
        if not self._left and not self._ended:
            self._next()
        if self._ended:
            return b""
        data = self._receive(min(count, self._left))
        self._left -= len(data)
        return data

    def _next(self) -> None:
        header = b""
        while len(header) < protocol.HEADER.size:
            header += bytes(self._receive(protocol.HEADER.size - len(header)))
        kind, self._left = protocol.HEADER.unpack(header)
        if kind != protocol.STDIN or self._left > protocol.MAX_PAYLOAD:
            raise HostGone("the host sent something else than a frame of input")
        self._ended = not self._left

    def _receive(self, count: int) -> "bytes | memoryview":
        if self._rest:
            data, self._rest = self._rest[:count], self._rest[count:]
            return data
        try:
            received = self._sock.recv_into(self._buffer[: min(count, len(self._buffer))])
        except OSError as error:
            raise HostGone(str(error)) from None
        if not received:
            raise HostGone("the host closed the stream")
        return self._buffer[:received]
