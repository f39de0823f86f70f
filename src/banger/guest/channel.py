"""The host's side of the agent's API, over a VM's hybrid vsock socket. docs/guest.md describes the API.

The guest is hostile: what it sends is bounded in size, what it owes is bounded in time, and whatever is
wrong with it surfaces as `GuestUnreachable`.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from types import TracebackType
from typing import Literal, Self, TypeVar

import msgspec

from banger.guest import protocol
from banger.model.errors import GuestUnreachable, Invalid
from banger.model.guest import ExecExit, ExecRequest, Health, Stream
from banger.system.http import request as http_request

CONNECT_SECONDS = 5.0
REQUEST_SECONDS = 10.0
EXEC_SECONDS = 15.0  # from connect to 101
OVERTIME_SECONDS = 30.0  # how late an EXIT may be after the request's own timeout_s
CLOSE_SECONDS = 1.0
MAX_OUTPUT = 16 * 1024 * 1024  # of each stream, kept by `run`

_MAX_LINE = 32  # "OK <port>\n"
_MAX_DOCUMENT = 64 * 1024
_READ_LIMIT = 2 * protocol.MAX_PAYLOAD
_RECEIVED = (Stream.STDOUT, Stream.STDERR, Stream.EXIT)
_HINT = "`banger vm logs` shows what the guest is doing, `banger vm health` each check"

_Document = TypeVar("_Document", Health, ExecExit)


async def connect(
    socket_path: Path, port: int, *, timeout: float = CONNECT_SECONDS
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A stream to a port of the guest, after the hybrid handshake; timeout in seconds.

    Source: Firecracker docs/vsock.md, "Host-Initiated Connections". Raises `GuestUnreachable`.
    """
    async with _deadline(timeout, f"port {port} of the guest"):
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
        raise GuestUnreachable(f"nothing in the guest listens on vsock port {port}", hint=_HINT) from error
    except asyncio.LimitOverrunError as error:
        raise GuestUnreachable("the engine's vsock answer has no end", hint=_HINT) from error
    if not line.startswith(b"OK ") or len(line) > _MAX_LINE or not line[3:-1].isdigit():
        raise GuestUnreachable(f"the engine's vsock answer is {line[:_MAX_LINE]!r}", hint=_HINT)


@contextlib.asynccontextmanager
async def _deadline(seconds: float | None, what: str) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError as error:
        raise GuestUnreachable(f"{what} did not answer within {seconds:g} s", hint=_HINT) from error


async def _close(writer: asyncio.StreamWriter) -> None:
    """Drop a stream without waiting for the guest to read what is left."""
    writer.transport.abort()
    with contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(CLOSE_SECONDS):
            await writer.wait_closed()


def _decode(body: bytes, kind: type[_Document]) -> _Document:
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise GuestUnreachable(f"the agent sent a document that makes no sense: {error}", hint=_HINT) from error


def _error_text(body: bytes) -> str:
    """The "error" of an agent's answer, for a person; empty when there is none."""
    try:
        document = msgspec.json.decode(body, type=dict[str, str])
    except (msgspec.DecodeError, ValueError, RecursionError):
        return ""
    return "".join(c if c.isprintable() else "?" for c in document.get("error", "")[:500])


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
        async with _deadline(self._seconds(timeout), "the running command"):
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
            raise GuestUnreachable(f"the agent broke the exec protocol: {error}", hint=_HINT) from error
        except (OSError, asyncio.IncompleteReadError) as error:
            raise GuestUnreachable("the guest closed the running command's stream", hint=_HINT) from error

    async def close(self) -> None:
        """End the stream; a command that still runs is killed with everything it started in its session."""
        self._ended = True
        await _close(self._writer)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


class ExecResult(msgspec.Struct, frozen=True):
    """A finished command: how it ended and what it printed."""

    exit: ExecExit
    stdout: bytes
    stderr: bytes


class Guest:
    """The agent of one VM, reached through the VM's vsock socket."""

    def __init__(self, vsock_socket: Path) -> None:
        self._socket = vsock_socket

    async def health(self, *, timeout: float = REQUEST_SECONDS) -> Health:
        """`GET /healthz`."""
        return _decode(await self._request("GET", "/healthz", 200, timeout=timeout), Health)

    async def shutdown(
        self, mode: Literal["poweroff", "reboot"] = "poweroff", *, timeout: float = REQUEST_SECONDS
    ) -> None:
        """Ask the guest's init to power off or reboot; returns when it has been asked."""
        await self._request("POST", "/shutdown", 202, msgspec.json.encode({"mode": mode}), timeout=timeout)

    async def exec(self, request: ExecRequest, *, timeout: float = EXEC_SECONDS) -> ExecStream:
        """Start a command; `timeout` bounds its start. Raises `Invalid` when the agent refuses the request."""
        body = msgspec.json.encode(request)
        if len(body) > protocol.MAX_BODY:
            raise Invalid("the command with its environment is too long", hint="pass large input through stdin")
        async with _deadline(timeout, "the guest's agent"):
            reader, writer = await connect(self._socket, protocol.AGENT_PORT, timeout=timeout)
            with contextlib.ExitStack() as on_failure:
                on_failure.callback(writer.transport.abort)
                await _upgrade(reader, writer, body)
                on_failure.pop_all()
        return ExecStream(reader, writer, request.timeout_s)

    async def run(self, request: ExecRequest, *, stdin: bytes = b"", max_output: int = MAX_OUTPUT) -> ExecResult:
        """Run a command to its end; the request's timeout_s bounds it.

        Raises `Invalid` when it prints more than `max_output` bytes on one stream.
        """
        kept = {Stream.STDOUT: bytearray(), Stream.STDERR: bytearray()}
        async with await self.exec(request) as stream:
            feeder = asyncio.create_task(_feed(stream, stdin))
            try:
                while (frame := await stream.receive())[0] is not Stream.EXIT:
                    kept[frame[0]] += frame[1]
                    if len(kept[frame[0]]) > max_output:
                        raise Invalid(f"the command printed more than {max_output} bytes")
            finally:
                feeder.cancel()
        return ExecResult(decode_exit(frame[1]), bytes(kept[Stream.STDOUT]), bytes(kept[Stream.STDERR]))

    async def _request(self, method: str, path: str, expected: int, body: bytes = b"", *, timeout: float) -> bytes:
        async with _deadline(timeout, "the guest's agent"):
            reader, writer = await connect(self._socket, protocol.AGENT_PORT, timeout=timeout)
            try:
                response = await http_request(reader, writer, method, path, body, max_body=_MAX_DOCUMENT)
            finally:
                await _close(writer)
        if response.status != expected:
            text = _error_text(response.body)
            raise GuestUnreachable(f"the agent answered {response.status} to {path}: {text}", hint=_HINT)
        return response.body


def decode_exit(payload: bytes) -> ExecExit:
    """The document in an EXIT frame. Raises `GuestUnreachable` when it makes no sense."""
    return _decode(payload, ExecExit)


async def _feed(stream: ExecStream, stdin: bytes) -> None:
    if stdin:
        await stream.send(Stream.STDIN, stdin)
    await stream.send(Stream.STDIN, b"")


async def _upgrade(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: bytes) -> None:
    """Send POST /exec and consume exactly its 101, so that the next byte read is the first frame's."""
    head = (
        "POST /exec HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nConnection: Upgrade\r\nUpgrade: {protocol.EXEC_UPGRADE}\r\n\r\n"
    )
    try:
        writer.write(head.encode() + body)
        await writer.drain()
        answer = await reader.readuntil(b"\r\n\r\n")
    except (OSError, asyncio.IncompleteReadError) as error:
        raise GuestUnreachable("the agent closed the connection without an answer", hint=_HINT) from error
    except asyncio.LimitOverrunError as error:
        raise GuestUnreachable("the agent's answer has no end", hint=_HINT) from error
    if len(answer) > protocol.MAX_HEAD:
        raise GuestUnreachable("the agent's answer has no end", hint=_HINT)
    status = answer.split(b"\r\n", 1)[0].split(b" ")
    if status[0] != b"HTTP/1.1" or len(status) < 2:
        raise GuestUnreachable("the agent does not speak HTTP", hint=_HINT)
    if status[1] != b"101":
        await _raise_refusal(status[1], reader)


async def _raise_refusal(status: bytes, reader: asyncio.StreamReader) -> None:
    body = bytearray()
    with contextlib.suppress(OSError):
        while len(body) < _MAX_DOCUMENT and (data := await reader.read(_MAX_DOCUMENT)):
            body += data
    text = _error_text(bytes(body))
    if status == b"400" and text:
        raise Invalid(f"the guest refused the command: {text}")
    raise GuestUnreachable(f"the agent answered {status[:8].decode('latin-1')} to /exec: {text}", hint=_HINT)
