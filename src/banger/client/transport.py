"""HTTP/1.1 over the daemon's Unix socket, blocking. Imports are few: every command pays for them."""

import json
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import h11

from banger.model.errors import BangerError, Conflict, from_dict

CHUNK = 262144


class DaemonUnreachable(Conflict):
    """No daemon answers on the socket."""

    code = "daemon_unreachable"


class DaemonLost(BangerError):
    """The daemon closed the connection in the middle of a reply."""

    code = "daemon_lost"


@dataclass(frozen=True)
class Reply:
    status: int
    headers: dict[bytes, bytes]
    connection: h11.Connection
    stream: socket.socket

    def chunks(self) -> Iterator[bytes]:
        """The body, piece by piece as it arrives."""
        try:
            while True:
                event = self.connection.next_event()
                if event is h11.NEED_DATA:
                    self.connection.receive_data(self.stream.recv(CHUNK))
                elif isinstance(event, h11.Data):
                    yield bytes(event.data)
                else:
                    return
        except (OSError, h11.RemoteProtocolError) as error:
            raise DaemonLost(f"the daemon closed the connection: {error}", hint="run the command again") from error
        finally:
            self.stream.close()

    def body(self) -> bytes:
        return b"".join(self.chunks())


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
    connection = h11.Connection(h11.CLIENT)
    headers = [("Host", "banger"), ("Connection", "close"), ("Content-Length", str(len(body)))]
    if body:
        headers.append(("Content-Type", "application/json"))
    data = connection.send(h11.Request(method=method, target=target, headers=headers)) or b""
    data += connection.send(h11.Data(data=body)) or b"" if body else b""
    try:
        stream.sendall(data + (connection.send(h11.EndOfMessage()) or b""))
        while (event := connection.next_event()) is h11.NEED_DATA:
            connection.receive_data(stream.recv(CHUNK))
    except (OSError, h11.RemoteProtocolError) as error:
        stream.close()
        raise DaemonLost(f"the daemon closed the connection: {error}", hint="run the command again") from error
    if not isinstance(event, h11.Response):
        stream.close()
        raise DaemonLost("the daemon closed the connection without a reply", hint="run the command again")
    reply = Reply(event.status_code, dict(event.headers), connection, stream)
    if reply.status >= 400:
        raise _reported(reply)
    return reply


def _reported(reply: Reply) -> BangerError:
    body = reply.body()
    try:
        return from_dict(json.loads(body)["error"])
    except (ValueError, KeyError, TypeError):
        return BangerError(f"the daemon answered {reply.status}: {body[:200].decode(errors='replace')}")
