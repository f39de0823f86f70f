"""HTTP/1.1 on a Unix socket. A slow, silent or senseless client harms nobody but itself."""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable

import h11

from banger.qemu.api import Reply, fault
from banger.qemu.options import BODY_MAX

HEADERS_MAX = 8192
CONNECTIONS_MAX = 32
REQUEST_DEADLINE_S = 30.0  # from a request's first byte to its last
IDLE_DEADLINE_S = 300.0
log = logging.getLogger("banger-vmm")

Handler = Callable[[str, str, bytes], Awaitable[Reply]]


class Server:
    """Serves one handler to at most 32 connections; requests of all connections are handled one after another."""

    def __init__(self, handler: Handler, body_max: int = BODY_MAX) -> None:
        """`body_max` in bytes, as Firecracker's --http-api-max-payload-size."""
        self._handler = handler
        self._body_max = body_max
        self.turn = asyncio.Lock()  # held while a request is handled
        self._open = 0

    async def connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one client until it leaves, breaks the protocol, or is silent for too long."""
        self._open += 1
        try:
            if self._open <= CONNECTIONS_MAX:
                await self._serve(reader, writer)
        except (OSError, TimeoutError) as error:
            log.info("a client was dropped: %s", error or "too slow")
        except asyncio.CancelledError:
            # the process ends; asyncio's streams would log a cancelled task as a fault (Python 3.11)
            log.debug("a client was still connected")
        finally:
            self._open -= 1
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        http = h11.Connection(h11.SERVER, max_incomplete_event_size=HEADERS_MAX)
        while True:
            try:
                request = await self._request(http, reader)
                if request is None:
                    return
                reply = await self._answer(request)
            except h11.RemoteProtocolError as error:
                await _send(http, writer, fault(f"Invalid request: {error}"), close=True)
                return
            await _send(http, writer, reply, close=request.body is None)
            if http.our_state is not h11.DONE or http.their_state is not h11.DONE:
                return
            http.start_next_cycle()

    async def _answer(self, request: "_Request") -> Reply:
        if request.body is None:
            return fault(f"Request payload is larger than {self._body_max} bytes.")
        async with self.turn:
            reply = await self._handler(request.method, request.target, request.body)
        log.info("%s %s -> %d", request.method, request.target[:100], reply.status)
        return reply

    async def _request(self, http: h11.Connection, reader: asyncio.StreamReader) -> "_Request | None":
        """The next whole request; None when the client has left."""
        event = await _next(http, reader, IDLE_DEADLINE_S)
        if not isinstance(event, h11.Request):
            return None
        request = _Request(event.method.decode(), event.target.decode("latin-1"))
        parts, size = [], 0
        async with asyncio.timeout(REQUEST_DEADLINE_S):
            while not isinstance(event := await _next(http, reader, REQUEST_DEADLINE_S), h11.EndOfMessage):
                if not isinstance(event, h11.Data):
                    return None
                size += len(event.data)
                if size > self._body_max:
                    return request
                parts.append(bytes(event.data))
        request.body = b"".join(parts)
        return request


class _Request:
    """Method, target and body; the body is None when it was too large to be read."""

    def __init__(self, method: str, target: str) -> None:
        self.method = method
        self.target = target
        self.body: bytes | None = None


async def _next(http: h11.Connection, reader: asyncio.StreamReader, silence: float) -> object:
    """The next event; `silence` bounds the wait for a first byte, then the whole of the headers has its own bound."""
    event = http.next_event()
    while event is h11.NEED_DATA:
        waiting = silence if not http.trailing_data[0] else REQUEST_DEADLINE_S
        async with asyncio.timeout(waiting):
            http.receive_data(await reader.read(16384))
        event = http.next_event()
    return event


async def _send(http: h11.Connection, writer: asyncio.StreamWriter, reply: Reply, *, close: bool) -> None:
    if http.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
        return
    headers = [("Server", "banger-vmm")]
    if reply.status != 204:
        headers += [("Content-Type", "application/json"), ("Content-Length", str(len(reply.body)))]
    if close:
        headers.append(("Connection", "close"))
    data = http.send(h11.Response(status_code=reply.status, headers=headers)) or b""
    if reply.body:
        data += http.send(h11.Data(data=reply.body)) or b""
    data += http.send(h11.EndOfMessage()) or b""
    writer.write(data)
    async with asyncio.timeout(REQUEST_DEADLINE_S):
        await writer.drain()
