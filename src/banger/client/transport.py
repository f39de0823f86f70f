"""HTTP over the daemon's Unix socket, blocking. It speaks HTTP/1.0, one request a connection, so that a reply is its
headers and then bytes until the end: no library is needed, and none has to be imported by every command.
"""

import json
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

from banger.model.errors import BangerError, Conflict, from_dict

CHUNK = 262144
HEAD_MAX = 65536


class DaemonUnreachable(Conflict):
    """No daemon answers on the socket."""

    code = "daemon_unreachable"


class DaemonLost(BangerError):
    """The daemon closed the connection in the middle of a reply."""

    code = "daemon_lost"


class Reply:
    """A reply whose headers have been read; names of headers are in lower case."""

    def __init__(self, head: bytes, rest: bytes, stream: socket.socket) -> None:
        status, *lines = head.decode("latin-1").split("\r\n")
        self.status = int(status.split()[1])
        self.headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        self._rest = rest
        self._stream = stream

    def chunks(self) -> Iterator[bytes]:
        """The body, piece by piece as it arrives. Raises `DaemonLost` when it is cut short."""
        missing = int(self.headers.get("content-length", "0"))
        try:
            data = self._rest or self._stream.recv(CHUNK)
            while data:
                missing -= len(data)
                yield data
                data = self._stream.recv(CHUNK)
        except OSError as error:
            raise _lost(error.strerror) from error
        finally:
            self._stream.close()
        if missing > 0:
            raise _lost("the reply was cut short")

    def fileno(self) -> int:
        return self._stream.fileno()

    @property
    def waiting(self) -> bool:
        """Whether a piece has arrived with the headers, so that the descriptor does not tell of it."""
        return bool(self._rest)

    def receive(self) -> bytes:
        """The next piece of a body without a length; nothing at its end."""
        data, self._rest = self._rest, b""
        try:
            return data or self._stream.recv(CHUNK)
        except OSError:
            return b""

    def server_pid(self) -> int:
        """The process that answers (unix(7), SO_PEERCRED)."""
        pid: int = struct.unpack("3i", self._stream.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
        return pid

    def close(self) -> None:
        self._stream.close()

    def body(self) -> bytes:
        return b"".join(self.chunks())


def _lost(why: str | None) -> DaemonLost:
    return DaemonLost(f"the daemon closed the connection: {why}", hint="run the command again")


def dial(path: Path) -> socket.socket:
    """A connection to the daemon. Raises `DaemonUnreachable`."""
    stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        stream.connect(str(path))
    except OSError as error:
        stream.close()
        raise DaemonUnreachable(
            f"no daemon answers on {path}: {error.strerror}",
            hint="`banger daemon run` runs one in the foreground",
        ) from error
    return stream


def send(stream: socket.socket, method: str, target: str, body: bytes = b"") -> Reply:
    """One request on a fresh connection; returns when the reply's headers are there. Raises what the daemon reports."""
    head = f"{method} {target} HTTP/1.0\r\nHost: banger\r\nContent-Length: {len(body)}\r\n"
    kind = "Content-Type: application/json\r\n" if body else ""
    data = b""
    try:
        stream.sendall(f"{head}{kind}\r\n".encode("ascii") + body)
        while b"\r\n\r\n" not in data and len(data) < HEAD_MAX and (chunk := stream.recv(CHUNK)):
            data += chunk
    except OSError as error:
        stream.close()
        raise _lost(error.strerror) from error
    first, end, rest = data.partition(b"\r\n\r\n")
    if not end or not first.startswith(b"HTTP/1."):
        stream.close()
        raise _lost("no reply came")
    reply = Reply(first, rest, stream)
    if reply.status >= 400:
        raise _reported(reply)
    return reply


def _reported(reply: Reply) -> BangerError:
    body = reply.body()
    try:
        return from_dict(json.loads(body)["error"])
    except (ValueError, KeyError, TypeError):
        return BangerError(f"the daemon answered {reply.status}: {body[:200].decode(errors='replace')}")
