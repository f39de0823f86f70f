"""HTTP/1.1 over an asyncio stream, with every size bounded: for engines and guests, which are not trusted.

One request per connection is enough for both; h11 does the protocol.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

import h11

from banger.model.errors import GuestUnreachable

MAX_HEADERS = 16 * 1024
MAX_BODY = 4 * 1024 * 1024


class BadPeer(GuestUnreachable):
    """The peer closed early or does not speak HTTP."""


@dataclass(frozen=True)
class Response:
    """Status code and whole body of a reply."""

    status: int
    body: bytes


async def request(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    method: str,
    path: str,
    body: bytes = b"",
    *,
    max_body: int = MAX_BODY,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """Send one request and read the whole reply. The caller sets the deadline and closes the stream.

    Raises `BadPeer` for anything but one well-formed reply within the limits.
    """
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEADERS)
    fields = [("Host", "localhost"), ("Connection", "close"), ("Accept", "application/json"), *(headers or {}).items()]
    if body or method not in ("GET", "DELETE"):
        fields += [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
    out = connection.send(h11.Request(method=method, target=path, headers=fields))
    out = (out or b"") + (connection.send(h11.Data(data=body)) or b"" if body else b"")
    try:
        writer.write(out + (connection.send(h11.EndOfMessage()) or b""))
        await writer.drain()
        return await _response(connection, reader, max_body)
    except h11.RemoteProtocolError as error:
        raise BadPeer(f"the peer does not speak HTTP: {error}") from error
    except OSError as error:
        raise BadPeer(f"the peer closed the connection: {error.strerror or error}") from error


async def _response(connection: h11.Connection, reader: asyncio.StreamReader, max_body: int) -> Response:
    status, parts, size = 0, [], 0
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(await reader.read(65536))
        elif isinstance(event, h11.Response):
            status = event.status_code
        elif isinstance(event, h11.Data):
            size += len(event.data)
            if size > max_body:
                raise BadPeer(f"the peer sent a body of more than {max_body} bytes")
            parts.append(bytes(event.data))
        elif isinstance(event, h11.EndOfMessage):
            return Response(status, b"".join(parts))
        elif isinstance(event, h11.ConnectionClosed):
            raise BadPeer("the peer closed the connection without a reply")
