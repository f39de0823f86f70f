"""The host's side of the agent's API, over a VM's hybrid vsock socket. docs/guest.md describes the API.

The guest is hostile: what it sends is bounded in size, what it owes is bounded in time, and whatever is
wrong with it surfaces as `GuestUnreachable`.
"""

import asyncio
import contextlib
from pathlib import Path
from typing import Literal, TypeVar

import msgspec

from banger.guest import protocol
from banger.guest.stream import HINT, connect, deadline, drop, exchange, rest
from banger.guest.stream import ExecStream as ExecStream
from banger.model.errors import BangerError, Conflict, GuestUnreachable, Invalid, Unsupported
from banger.model.guest import (
    ExecExit,
    ExecRequest,
    Grown,
    Health,
    Identity,
    IdentityChange,
    Info,
    Ports,
    Services,
    Stream,
)
from banger.system.http import request as http_request

REQUEST_SECONDS = 10.0
IDENTITY_SECONDS = 180.0  # new host keys may include an RSA key, on an emulated processor
GROW_SECONDS = 120.0  # where a disk cannot be told to be zero, the new inode tables are written
EXEC_SECONDS = 15.0  # from connect to 101
TUNNEL_SECONDS = 15.0  # from connect to 200, besides the wait
MAX_OUTPUT = 16 * 1024 * 1024  # of each stream, kept by `run`

_MAX_DOCUMENT = 256 * 1024
_Document = TypeVar("_Document", bound=msgspec.Struct)


def _decode(body: bytes, kind: type[_Document]) -> _Document:
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise GuestUnreachable(f"the agent sent a document that makes no sense: {error}", hint=HINT) from error


def _error_text(body: bytes) -> str:
    """The "error" of an agent's answer, for a person; empty when there is none."""
    try:
        document = msgspec.json.decode(body, type=dict[str, str])
    except (msgspec.DecodeError, ValueError, RecursionError):
        return ""
    return "".join(c if c.isprintable() else "?" for c in document.get("error", "")[:500])


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

    async def info(self, *, timeout: float = REQUEST_SECONDS) -> Info:
        """`GET /info`. Raises `Unsupported` when the agent is older than the route, as all methods below."""
        return _decode(await self._request("GET", "/info", 200, timeout=timeout), Info)

    async def services(self, *, timeout: float = REQUEST_SECONDS) -> Services:
        """`GET /services`."""
        return _decode(await self._request("GET", "/services", 200, timeout=timeout), Services)

    async def ports(self, *, timeout: float = REQUEST_SECONDS) -> Ports:
        """`GET /ports`."""
        return _decode(await self._request("GET", "/ports", 200, timeout=timeout), Ports)

    async def identity(self, *, timeout: float = REQUEST_SECONDS) -> Identity:
        """`GET /identity`."""
        return _decode(await self._request("GET", "/identity", 200, timeout=timeout), Identity)

    async def set_identity(self, change: IdentityChange, *, timeout: float = IDENTITY_SECONDS) -> Identity:
        """`POST /identity`: the identity afterwards. Raises `Invalid` with nothing done."""
        body = msgspec.json.encode(change)
        return _decode(await self._request("POST", "/identity", 200, body, timeout=timeout), Identity)

    async def give_opencode_password(self, password: str, *, timeout: float = REQUEST_SECONDS) -> None:
        """`POST /opencode`: hand over the password and start the service. Raises `Unsupported` without the service."""
        await self._request("POST", "/opencode", 202, msgspec.json.encode({"password": password}), timeout=timeout)

    async def grow(self, path: str, *, device_bytes: int = 0, timeout: float = GROW_SECONDS) -> Grown:
        """`POST /grow`: make the ext4 that is mounted at a path as large as its disk; nothing is done twice.

        A guest is told of a larger disk a moment after the engine was: the agent waits until it has `device_bytes`.
        Raises `Unsupported` when the agent is too old, or nothing there can be grown.
        """
        body = msgspec.json.encode({"path": path, "device_bytes": device_bytes})
        return _decode(await self._request("POST", "/grow", 200, body, timeout=timeout), Grown)

    async def tunnel(
        self, host: str, port: int, wait_s: float = 0.0, *, timeout: float = TUNNEL_SECONDS
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A stream to a TCP port as the guest sees it; for `wait_s` seconds the agent tries when nothing listens yet.

        Raises `Conflict` when nothing does, `Invalid`, `GuestUnreachable`. What comes through it is the guest's
        and not bounded in any way.
        """
        name = f"[{host}]" if ":" in host else host
        if not host.isascii() or not host.isprintable() or " " in host:
            raise Invalid(f"{host!r} is not a host name")
        wait = f"Banger-Wait: {wait_s:g}\r\n" if wait_s else ""
        request = f"CONNECT {name}:{port} HTTP/1.1\r\nHost: localhost\r\n{wait}\r\n".encode()
        return await self._switch("CONNECT", request, 200, timeout + wait_s)

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
        head = (
            "POST /exec HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\nConnection: Upgrade\r\nUpgrade: {protocol.EXEC_UPGRADE}\r\n\r\n"
        )
        reader, writer = await self._switch("/exec", head.encode() + body, 101, timeout)
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

    async def _switch(
        self, what: str, request: bytes, expected: int, timeout: float
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A stream that belongs to its user once the answer's head has come."""
        async with deadline(timeout, "the guest's agent"):
            reader, writer = await connect(self._socket, protocol.AGENT_PORT, timeout=timeout)
            with contextlib.ExitStack() as on_failure:
                on_failure.callback(writer.transport.abort)
                status = await exchange(reader, writer, request)
                if status != expected:
                    raise _refusal(what, status, await rest(reader, _MAX_DOCUMENT))
                on_failure.pop_all()
        return reader, writer

    async def _request(self, method: str, path: str, expected: int, body: bytes = b"", *, timeout: float) -> bytes:
        async with deadline(timeout, "the guest's agent"):
            reader, writer = await connect(self._socket, protocol.AGENT_PORT, timeout=timeout)
            try:
                response = await http_request(reader, writer, method, path, body, max_body=_MAX_DOCUMENT)
            finally:
                await drop(writer)
        if response.status != expected:
            raise _refusal(path, response.status, response.body)
        return response.body


def _refusal(what: str, status: int, body: bytes) -> BangerError:
    """The error for an answer that was not the one expected; `what` is the route."""
    text = _error_text(body)
    if status == 400 and text:
        return Invalid(f"the guest refused the {'command' if what == '/exec' else 'request'}: {text}")
    if status == 404 and text:
        lacks = " to grow a filesystem" if what == "/grow" else f": it has no {what}"
        return Unsupported(
            f"the image's agent is too old{lacks}",
            hint="make its image again: `banger image bootstrap debian --name NEW`",
        )
    if status == 409 and text:
        return Unsupported(f"the guest cannot do it: {text}")
    if status in (502, 504) and what == "CONNECT" and text:
        return Conflict(text, hint="`banger vm ports` shows what listens in the guest")
    return GuestUnreachable(f"the agent answered {status} to {what}: {text}", hint=HINT)


def decode_exit(payload: bytes) -> ExecExit:
    """The document in an EXIT frame. Raises `GuestUnreachable` when it makes no sense."""
    return _decode(payload, ExecExit)


async def _feed(stream: ExecStream, stdin: bytes) -> None:
    if stdin:
        await stream.send(Stream.STDIN, stdin)
    await stream.send(Stream.STDIN, b"")
