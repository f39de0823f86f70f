"""Streams into a guest over its VM's hybrid vsock socket: the handshake, deadlines, and a running command.

The guest is hostile: what it sends is bounded in size, what it owes is bounded in time, and whatever is
wrong with it surfaces as `GuestUnreachable`.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from banger.guest import protocol
from banger.model.errors import GuestUnreachable, Invalid
from banger.model.guest import Stream

CONNECT_SECONDS = 5.0
OVERTIME_SECONDS = 30.0  # how late an EXIT may be after the request's own timeout_s
CLOSE_SECONDS = 1.0
HINT = "`banger vm logs` shows what the guest is doing, `banger vm health` each check"

_MAX_LINE = 32  # "OK <port>\n"
_READ_LIMIT = 256 * 1024  # asyncio keeps up to twice as much of what nobody has read
_RECEIVED = (Stream.STDOUT, Stream.STDERR, Stream.EXIT)


async def connect(
    socket_path: Path, port: int, *, timeout: float = CONNECT_SECONDS
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A stream to a port of the guest, after the hybrid handshake; timeout in seconds.

    Source: Firecracker docs/vsock.md, "Host-Initiated Connections". Raises `GuestUnreachable`.
    """
    async with deadline(timeout, f"port {port} of the guest"):
        try:
            reader, writer = await asyncio.open_unix_connection(socket_path, limit=_READ_LIMIT)
        except OSError as error:
            raise GuestUnreachable(
                f"the VM's vsock socket does not answer: {error.strerror or error}",
                hint="check that the VM runs: `banger vm list`",
            ) from error
        with contextlib.ExitStack() as on_failure:
            on_failure.callback(writer.transport.abort)
            await _handshake(reader, writer, port)
            on_failure.pop_all()
    return reader, writer


async def _handshake(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, port: int) -> None:
    try:
        writer.write(b"CONNECT %d\n" % port)
        await writer.drain()
        line = await reader.readuntil(b"\n")
    except (OSError, asyncio.IncompleteReadError) as error:
        raise GuestUnreachable(f"nothing in the guest listens on vsock port {port}", hint=HINT) from error
    except asyncio.LimitOverrunError as error:
        raise GuestUnreachable("the engine's vsock answer has no end", hint=HINT) from error
    if not line.startswith(b"OK ") or len(line) > _MAX_LINE or not line[3:-1].isdigit():
        raise GuestUnreachable(f"the engine's vsock answer is {line[:_MAX_LINE]!r}", hint=HINT)


@contextlib.asynccontextmanager
async def deadline(seconds: float | None, what: str) -> AsyncIterator[None]:
    """Bound a block: `GuestUnreachable` that names `what` after that many seconds."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError as error:
        raise GuestUnreachable(f"{what} did not answer within {seconds:g} s", hint=HINT) from error


async def drop(writer: asyncio.StreamWriter) -> None:
    """Drop a stream without waiting for the guest to read what is left."""
    writer.transport.abort()
    with contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(CLOSE_SECONDS):
            await writer.wait_closed()


async def exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> int:
    """Send a request and consume exactly the head of its answer, so that the next byte read is what follows it.

    Returns the HTTP status. Raises `GuestUnreachable`; the caller sets the deadline.
    """
    try:
        writer.write(request)
        await writer.drain()
        answer = await reader.readuntil(b"\r\n\r\n")
    except (OSError, asyncio.IncompleteReadError) as error:
        raise GuestUnreachable("the agent closed the connection without an answer", hint=HINT) from error
    except asyncio.LimitOverrunError as error:
        raise GuestUnreachable("the agent's answer has no end", hint=HINT) from error
    if len(answer) > protocol.MAX_HEAD:
        raise GuestUnreachable("the agent's answer has no end", hint=HINT)
    words = answer.split(b"\r\n", 1)[0].split(b" ")
    if words[0] != b"HTTP/1.1" or len(words) < 2 or len(words[1]) != 3 or not words[1].isdigit():
        raise GuestUnreachable("the agent does not speak HTTP", hint=HINT)
    return int(words[1])


async def rest(reader: asyncio.StreamReader, limit: int) -> bytes:
    """What the guest still sends before it closes, at most `limit` bytes."""
    body = bytearray()
    with contextlib.suppress(OSError):
        while len(body) < limit and (data := await reader.read(limit - len(body))):
            body += data
    return bytes(body)


class ExecStream:
    """A running command. Use as an async context manager: leaving it closes the stream, which ends the command."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, timeout_s: float | None = None
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._ended = False
        now = asyncio.get_running_loop().time()
        self._deadline = None if timeout_s is None else now + timeout_s + OVERTIME_SECONDS

    async def send(self, kind: Stream, payload: bytes) -> None:
        """Send one frame, waiting while the guest reads slowly. STDIN of any length is cut up; empty is its end.

        A command that has ended takes nothing more: that is no error here, `receive` tells it.
        """
        step = protocol.MAX_PAYLOAD
        pieces = [payload[at : at + step] for at in range(0, len(payload), step)] or [b""]
        if len(pieces) > 1 and kind is not Stream.STDIN:
            raise Invalid(f"a {kind.name} frame holds at most {step} bytes")
        with contextlib.suppress(OSError):
            for piece in pieces:
                self._writer.write(protocol.encode(kind, piece))
                await self._writer.drain()

    async def resize(self, rows: int, cols: int) -> None:
        """Tell the command's terminal its size in cells."""
        await self.send(Stream.RESIZE, msgspec.json.encode({"rows": rows, "cols": cols}))

    async def signal(self, signal: str | int) -> None:
        """Signal the command's foreground process group, by name (`INT`) or number."""
        await self.send(Stream.SIGNAL, msgspec.json.encode({"signal": signal}))

    async def receive(self, *, timeout: float | None = None) -> tuple[Stream, bytes]:
        """The next frame; EXIT is the last. Waits as long as the command is silent, or at most `timeout` seconds.

        A request with timeout_s bounds the whole stream: the agent must keep it, and we do not trust it to.
        """
        if self._ended:
            raise Invalid("the command has ended: its EXIT has been received")
        async with deadline(self._seconds(timeout), "the running command"):
            kind, payload = await self._frame()
        self._ended = kind is Stream.EXIT
        return kind, payload

    def _seconds(self, timeout: float | None) -> float | None:
        if self._deadline is None:
            return timeout
        left = max(0.0, self._deadline - asyncio.get_running_loop().time())
        return left if timeout is None else min(left, timeout)

    async def _frame(self) -> tuple[Stream, bytes]:
        try:
            kind, length = protocol.HEADER.unpack(await self._reader.readexactly(protocol.HEADER.size))
            protocol.check(kind, length)
            if Stream(kind) not in _RECEIVED:
                raise protocol.ProtocolError(f"a frame of kind {kind}")
            return Stream(kind), await self._reader.readexactly(length)
        except protocol.ProtocolError as error:
            raise GuestUnreachable(f"the agent broke the exec protocol: {error}", hint=HINT) from error
        except (OSError, asyncio.IncompleteReadError) as error:
            raise GuestUnreachable("the guest closed the running command's stream", hint=HINT) from error

    async def close(self) -> None:
        """End the stream; a command that still runs is killed with everything it started in its session."""
        self._ended = True
        await drop(self._writer)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
