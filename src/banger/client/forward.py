"""Ports of this host's loopback that lead into a guest: one event loop, bounded buffers, no thread a connection.

    forwarder = Forwarder(Dialer(client, vm).open, [Forward(0, "localhost", 4096)])
    async with forwarder:  # all ports are bound, or none
        print(forwarder.forwards[0].local)
        await forwarder.run()  # until it is cancelled

Each connection gets a tunnel of its own. One that cannot be opened costs that connection only.
"""

import asyncio
import contextlib
import errno
import socket
import struct
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Self

from banger.client.tunnel import Tunnel
from banger.model.errors import BangerError, Conflict, HostRequirement, Invalid, NotFound

CONNECTIONS_MAX = 240  # open at once; the agent serves 256, exec and health among them
CHUNK = 256 * 1024
_BACKLOG = 128
_RETRY_S = 1.0
_YIELD_BYTES = 1 << 20  # a busy connection lets the others run this often
_FREE_PORT_TRIES = 20
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: on, 0 s

OpenTunnel = Callable[[str, int], Awaitable[Tunnel]]


@dataclass(frozen=True)
class Forward:
    """Local port `local_port` (0: a free one) leads to `port` of `host`, a host as the guest sees it."""

    local_port: int
    host: str
    port: int

    @property
    def local(self) -> str:
        return f"127.0.0.1:{self.local_port}"


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
        for forward in self.forwards:
            try:
                self._listeners.append(listen(forward))
            except Conflict as error:
                taken.append(error)
            except BaseException:
                self._close_listeners()
                raise
        if taken:
            self._close_listeners()
            raise Conflict("; ".join(error.message for error in taken), hint=taken[0].hint)
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
            with _closing_on_failure(client):
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


@contextlib.contextmanager
def _closing_on_failure(stream: socket.socket) -> Iterator[None]:
    with contextlib.ExitStack() as on_failure:
        on_failure.enter_context(stream)
        yield
        on_failure.pop_all()


async def join(client: socket.socket, tunnel: Tunnel, traffic: Traffic) -> None:
    """Carry bytes both ways until both have ended, or one has failed: then the client sees a reset."""

    def up(count: int) -> None:
        traffic.up += count

    def down(count: int) -> None:
        traffic.down += count

    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(_pump(client, tunnel.stream, b"", up))
            group.create_task(_pump(tunnel.stream, client, tunnel.early, down))
    except* OSError:
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


def listen(forward: Forward) -> tuple[Forward, list[socket.socket]]:
    """Listeners on 127.0.0.1 and, where the host has it, ::1; a local port of 0 becomes a number.

    Raises `Conflict` when another program has the port, `HostRequirement`.
    """
    for last in (False,) * (_FREE_PORT_TRIES - 1) + (True,):
        listeners: list[socket.socket] = []
        port = forward.local_port
        try:
            for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
                if (listener := _bind(family, address, port)) is not None:
                    listeners.append(listener)
                    port = listener.getsockname()[1]
            return replace(forward, local_port=port), listeners
        except OSError as error:
            for listener in listeners:
                listener.close()
            if forward.local_port or last or error.errno != errno.EADDRINUSE:
                raise _cannot_bind(forward.local_port, error) from error
    raise AssertionError("the last try returns or raises")


def _bind(family: int, address: str, port: int) -> socket.socket | None:
    """None when the host has no IPv6."""
    try:
        listener = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    except OSError:
        if family == socket.AF_INET6:
            return None
        raise
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address, port))
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        if family == socket.AF_INET6 and error.errno == errno.EADDRNOTAVAIL:
            return None
        raise
    return listener


def _cannot_bind(port: int, error: OSError) -> BangerError:
    if error.errno == errno.EADDRINUSE:
        return Conflict(f"local port {port} is taken{_owner(port)}", hint="choose another: LOCAL:GUEST, or 0:GUEST")
    if error.errno == errno.EACCES:
        return HostRequirement(
            f"local port {port} needs a privilege that you do not have",
            hint="choose one from 1024 on, like 8080:80",
        )
    return HostRequirement(f"cannot listen on local port {port}: {error.strerror}")


def _owner(port: int) -> str:
    """` by NAME (pid N)` of the process that listens on a port, if we may know."""
    import psutil

    with contextlib.suppress(psutil.Error, OSError):
        for found in psutil.net_connections("tcp"):
            if found.status == psutil.CONN_LISTEN and found.laddr.port == port and found.pid:
                return f" by {psutil.Process(found.pid).name()} (pid {found.pid})"
    return ""
