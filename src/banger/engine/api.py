"""The client side of the Firecracker API, over one engine's Unix socket."""

import asyncio
import socket
import struct
from pathlib import Path
from typing import TypeVar

import msgspec

from banger.model.errors import CommandFailed, GuestUnreachable, Timeout
from banger.model.firecracker import Document, Error, FirecrackerVersion, InstanceInfo
from banger.system.http import Response, request

CALL_TIMEOUT_S = 10.0
T = TypeVar("T", bound=Document)


class EngineUnreachable(GuestUnreachable):
    """Nothing answers on the engine's socket."""


class EngineApi:
    """One engine. Each call opens a connection of its own."""

    def __init__(self, path: Path) -> None:
        self._path = path

    async def call(
        self, method: str, path: str, body: Document | None = None, *, timeout: float = CALL_TIMEOUT_S
    ) -> bytes:
        """The reply's body. Raises `CommandFailed` with the engine's fault message, `EngineUnreachable`, `Timeout`."""
        try:
            async with asyncio.timeout(timeout):
                reply = await self._exchange(method, path, msgspec.json.encode(body) if body is not None else b"")
        except TimeoutError as error:
            raise Timeout(f"the engine did not answer {method} {path} within {timeout:g} s") from error
        if reply.status >= 300:
            raise CommandFailed(f"the engine refused {method} {path}: {_fault(reply.body)}")
        return reply.body

    async def _exchange(self, method: str, path: str, body: bytes) -> Response:
        reader, writer = await self._connect()
        try:
            return await request(reader, writer, method, path, body)
        finally:
            writer.close()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        try:
            return await asyncio.open_unix_connection(str(self._path))
        except OSError as error:
            raise EngineUnreachable(
                f"the engine's socket does not answer: {error.strerror}",
                hint="`banger vm start` starts the VM again",
            ) from error

    async def served_by(self) -> int:
        """The pid of the process that listens on the socket (unix(7), SO_PEERCRED). Raises `EngineUnreachable`."""
        _, writer = await self._connect()
        try:
            sock = writer.get_extra_info("socket")
            return int(struct.unpack("iII", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0])
        finally:
            writer.close()

    async def version(self) -> str:
        """GET /version: the release of the API that the engine honours."""
        return self._decoded(await self.call("GET", "/version"), FirecrackerVersion).firecracker_version

    async def info(self) -> InstanceInfo:
        """GET /: the engine's name, version, VM id and state."""
        return self._decoded(await self.call("GET", "/"), InstanceInfo)

    @staticmethod
    def _decoded(body: bytes, kind: type[T]) -> T:
        try:
            return msgspec.json.decode(body, type=kind)
        except msgspec.DecodeError as error:
            raise EngineUnreachable(f"the engine answered nonsense: {error}") from error


def _fault(body: bytes) -> str:
    try:
        return msgspec.json.decode(body, type=Error).fault_message
    except msgspec.DecodeError:
        return body[:200].decode(errors="replace")
