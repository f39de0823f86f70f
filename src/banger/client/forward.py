"""Ports of this host's loopback that lead into a guest: one event loop, bounded buffers, no thread a connection.

    forwarder = Forwarder(Dialer(client, vm).open, [Forward(0, "localhost", 4096)])
    async with forwarder:  # all ports are bound, or none
        print(forwarder.forwards[0].local)
        await forwarder.run()  # until it is cancelled

Each connection gets a tunnel of its own. One that cannot be opened costs that connection only.
"""

import asyncio
import contextlib
import socket
import struct
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from banger.client.guest import closing_on_failure
from banger.client.loopback import Forward, listen
from banger.client.tunnel import Tunnel
from banger.model.errors import BangerError, Conflict, Invalid, NotFound

CONNECTIONS_MAX = 240  # open at once; the agent serves 256, exec and health among them
CHUNK = 64 * 1024  # of each direction of each connection
_RETRY_S = 1.0
_YIELD_BYTES = 1 << 20  # a busy connection lets the others run this often
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: on, 0 s

OpenTunnel = Callable[[str, int], Awaitable[Tunnel]]


@dataclass
class Traffic:
    """Connections and bytes so far; `up` is towards the guest."""

    open: int = 0
    total: int = 0
    failed: int = 0
    up: int = 0
    down: int = 0


class Forwarder:
    """`told` hears, as one line, of connections that could not be made: once until the next that could."""

    def __init__(
        self, open_tunnel: OpenTunnel, forwards: Sequence[Forward], *, told: Callable[[str], None] = lambda _: None
    ) -> None:
        self._open_tunnel = open_tunnel
        self._told = told
        self._last_told = ""
        self._listeners: list[tuple[Forward, list[socket.socket]]] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._slots = asyncio.Semaphore(CONNECTIONS_MAX)
        self._ended: asyncio.Future[None] | None = None
        self.forwards = tuple(forwards)
        self.traffic = Traffic()

    async def __aenter__(self) -> Self:
        """Bind every port. Raises `Conflict` naming all that are taken, `HostRequirement`; then none stays bound."""
        wanted = [forward.local_port for forward in self.forwards if forward.local_port]
        if twice := sorted({port for port in wanted if wanted.count(port) > 1}):
            raise Invalid(f"two forwards want local port {twice[0]}", hint="give one of them another: LOCAL:GUEST")
        taken = []
        with contextlib.ExitStack() as on_failure:
            on_failure.callback(self._close_listeners)
            for forward in self.forwards:
                try:
                    self._listeners.append(listen(forward))
                except Conflict as error:
                    taken.append(error)
            if taken:
                raise Conflict("; ".join(error.message for error in taken), hint=taken[0].hint)
            on_failure.pop_all()
        self.forwards = tuple(forward for forward, _ in self._listeners)
        self._ended = asyncio.get_running_loop().create_future()
        for forward, listeners in self._listeners:
            for listener in listeners:
                self._begin(self._accept(forward, listener))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close every port and connection."""
        self._close_listeners()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._ended is not None:
            self._ended.cancel()

    async def run(self) -> None:
        """Wait for as long as there is something to forward to. Raises `NotFound` when the VM has been deleted."""
        assert self._ended is not None
        await asyncio.shield(self._ended)

    def _close_listeners(self) -> None:
        for _, listeners in self._listeners:
            for listener in listeners:
                listener.close()

    def _begin(self, work: Coroutine[object, object, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _accept(self, forward: Forward, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                client, _ = await loop.sock_accept(listener)
            except OSError as error:  # too many files are open: the end of any connection helps
                self._say(f"cannot take a connection on {forward.local}: {error.strerror}")
                await asyncio.wait(self._tasks, timeout=_RETRY_S, return_when=asyncio.FIRST_COMPLETED)
                continue
            with closing_on_failure(client):
                if self._slots.locked():
                    self._say(f"{CONNECTIONS_MAX} connections are open; further ones wait")
                await self._slots.acquire()
            self._begin(self._serve(forward, client))

    async def _serve(self, forward: Forward, client: socket.socket) -> None:
        self.traffic.open += 1
        self.traffic.total += 1
        try:
            with client:
                tunnel = await self._dial(forward)
                if tunnel is None:
                    reset(client)
                    return
                with tunnel.stream:
                    await join(client, tunnel, self.traffic)
        finally:
            self.traffic.open -= 1
            self._slots.release()

    async def _dial(self, forward: Forward) -> Tunnel | None:
        try:
            tunnel = await self._open_tunnel(forward.host, forward.port)
        except (BangerError, OSError) as error:
            self.traffic.failed += 1
            self._say(f"port {forward.port}: {error}")
            if isinstance(error, NotFound) and self._ended is not None and not self._ended.done():
                self._ended.set_exception(error)
            return None
        self._last_told = ""
        return tunnel

    def _say(self, text: str) -> None:
        if text != self._last_told:
            self._last_told = text
            self._told(text)


async def join(client: socket.socket, tunnel: Tunnel, traffic: Traffic) -> None:
    """Carry bytes both ways until both directions have ended. Cut short, the client sees a reset."""

    def up(count: int) -> None:
        traffic.up += count

    def down(count: int) -> None:
        traffic.down += count

    whole = False
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(_pump(client, tunnel.stream, b"", up))
            group.create_task(_pump(tunnel.stream, client, tunnel.early, down))
        whole = True
    except* OSError:
        pass  # one of the two has left in the middle
    finally:
        if not whole:
            reset(client)


async def _pump(source: socket.socket, sink: socket.socket, early: bytes, count: Callable[[int], None]) -> None:
    """One direction, to its end, which is passed on. It reads only what has left: the buffer is the bound."""
    loop = asyncio.get_running_loop()
    if early:
        await loop.sock_sendall(sink, early)
        count(len(early))
    buffer = memoryview(bytearray(CHUNK))
    since = 0
    while received := await loop.sock_recv_into(source, buffer):
        await loop.sock_sendall(sink, buffer[:received])
        count(received)
        since += received
        if since >= _YIELD_BYTES:
            since = 0
            await asyncio.sleep(0)  # neither call above lets others run while it need not wait
    with contextlib.suppress(OSError):  # the other end may have left altogether
        sink.shutdown(socket.SHUT_WR)


def reset(client: socket.socket) -> None:
    """Let the close of a TCP connection be seen as a failure, not as the end of what was asked for."""
    with contextlib.suppress(OSError):
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
