"""Waits, on an event and not by polling, for a guest's agent to dial in when it starts."""

import asyncio
import os
import re
from pathlib import Path
from types import TracebackType
from typing import Self

from banger.guest import protocol
from banger.model.errors import GuestUnreachable

MAX_DIALS = 8  # connections that may be open at once
DIAL_SECONDS = 5.0  # for one to send its line

_LINE = re.compile(rb"ready ([0-9a-f-]{36})\n")
_LINE_BYTES = len(protocol.READY_WORD) + 1 + 36 + 1


class ReadyListener:
    """Listens on the Unix socket `path`, where the engine connects for guest-to-host port 1025.

    An async context manager: inside it the socket exists, mode 0600; a stale one is replaced. What dials in
    is a process of the guest, perhaps not the agent: a reason to ask `Guest.health` now, and no answer itself.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._boot_id: asyncio.Future[str] | None = None
        self._server: asyncio.Server | None = None
        self._dials: set[_Dial] = set()

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._boot_id = loop.create_future()
        self._path.unlink(missing_ok=True)
        self._server = await loop.create_unix_server(lambda: _Dial(self), self._path, start_serving=False)
        self._path.chmod(0o600)
        if (owner := self._path.parent.stat()).st_uid != os.geteuid():
            # the engine that will connect runs as the directory's owner
            os.chown(self._path, owner.st_uid, owner.st_gid)
        await self._server.start_serving()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        assert self._boot_id is not None
        self._server.close()
        for dial in list(self._dials):
            dial.drop()
        self._boot_id.cancel()
        self._boot_id = None
        self._path.unlink(missing_ok=True)
        await asyncio.sleep(0)  # lets the dropped transports close their sockets

    async def wait(self, *, timeout: float | None = None) -> str:
        """The boot id that the guest sent; `timeout` in seconds. Raises `GuestUnreachable` after it."""
        assert self._boot_id is not None, "use it as a context manager"
        try:
            async with asyncio.timeout(timeout):
                return await asyncio.shield(self._boot_id)
        except TimeoutError as error:
            raise GuestUnreachable(
                f"the guest's agent did not report within {timeout:g} s",
                hint="`banger vm logs` shows how far the guest has come",
            ) from error

    def admit(self, dial: "_Dial") -> bool:
        """Whether one more connection may stay open; none once the listener is being closed."""
        if len(self._dials) >= MAX_DIALS or self._boot_id is None:
            return False
        self._dials.add(dial)
        return True

    def leave(self, dial: "_Dial") -> None:
        self._dials.discard(dial)

    def report(self, boot_id: str) -> None:
        if self._boot_id is not None and not self._boot_id.done():
            self._boot_id.set_result(boot_id)


class _Dial(asyncio.Protocol):
    """One connection: takes one line within a bounded time, then drops it."""

    def __init__(self, listener: ReadyListener) -> None:
        self._listener = listener
        self._line = b""
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        if self._listener.admit(self):
            self._timer = asyncio.get_running_loop().call_later(DIAL_SECONDS, self.drop)
        else:
            transport.abort()

    def data_received(self, data: bytes) -> None:
        self._line += data[:_LINE_BYTES]
        if match := _LINE.match(self._line):
            self._listener.report(match[1].decode())
        if len(self._line) >= _LINE_BYTES or b"\n" in self._line:
            self.drop()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._listener.leave(self)

    def drop(self) -> None:
        """Close the connection now."""
        if self._transport is not None:
            self._transport.abort()
