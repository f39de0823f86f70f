"""GET /ports: what listens, whose it is, and which of it speaks HTTP."""

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from banger.guest.agent import ports
from banger.model.guest import Port
from tests.unit.guest.hybrid import drop, guest

_DEADLINE = 30.0
Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Server:
    """A TCP server that counts its connections and keeps what came first on each."""

    def __init__(self, says: bytes, *, first: bool = False) -> None:
        self.says = says
        self.first = first
        self.port = 0
        self.received: list[bytes] = []

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.first:
            writer.write(self.says)
        with contextlib.suppress(OSError):
            self.received.append(await reader.read(4096))
            if not self.first and self.says:
                writer.write(self.says)
                await writer.drain()
            await reader.read()
        await drop(writer)


@contextlib.asynccontextmanager
async def running(server: Server, host: str = "127.0.0.1") -> AsyncIterator[Server]:
    listener = await asyncio.start_server(server.handle, host, 0)
    server.port = listener.sockets[0].getsockname()[1]
    async with listener:
        yield server


def by_port(found: tuple[Port, ...]) -> dict[int, Port]:
    return {port.port: port for port in found}


def test_http_is_found_by_one_probe_and_nothing_else_is_bothered(tmp_path: Path) -> None:
    http, ssh, mute = Server(b"HTTP/1.1 401 No\r\n\r\n"), Server(b"SSH-2.0-x\r\n", first=True), Server(b"")

    async def body() -> None:
        async with asyncio.timeout(_DEADLINE), guest(tmp_path) as machine, running(http), running(ssh), running(mute):
            for _ in range(6):
                found = by_port((await machine.ports()).ports)
        assert found[http.port].url == f"http://localhost:{http.port}/"
        assert found[ssh.port].url is found[mute.port].url is None
        assert found[http.port].addresses == ("127.0.0.1",)
        assert (found[http.port].pid, found[http.port].process) == (os.getpid(), comm())
        assert len(http.received) == 1
        assert http.received[0].startswith(b"HEAD / HTTP/1.1\r\n")
        assert ssh.received == [b""]
        assert 1 <= len(mute.received) <= 3

    asyncio.run(body())


def comm() -> str:
    return Path("/proc/self/comm").read_text().strip()


def test_two_addresses_of_one_service_are_one_port(tmp_path: Path) -> None:
    server = Server(b"HTTP/1.0 200 OK\r\n\r\n")

    async def body() -> None:
        async with asyncio.timeout(_DEADLINE), guest(tmp_path) as machine, running(server, "0.0.0.0"):
            try:
                six = await asyncio.start_server(server.handle, "::1", server.port)
            except OSError:
                pytest.skip("there is no IPv6 here")
            async with six:
                found = by_port((await machine.ports()).ports)[server.port]
        assert found.addresses == ("0.0.0.0", "::1")
        assert found.url == f"http://localhost:{server.port}/"

    asyncio.run(body())


@contextlib.contextmanager
def datagrams() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        yield sock


def test_udp_counts_while_bound_and_not_connected_and_is_never_probed(tmp_path: Path) -> None:
    async def body() -> None:
        async with asyncio.timeout(_DEADLINE), guest(tmp_path) as machine:
            with datagrams() as bound, datagrams() as connected:
                connected.connect(bound.getsockname())
                found = (await machine.ports()).ports
                bound.setblocking(False)
                with pytest.raises(BlockingIOError):
                    bound.recv(1)
                names = [sock.getsockname()[1] for sock in (bound, connected)]
        udp = by_port(tuple(port for port in found if port.protocol == "udp"))
        assert udp[names[0]].url is None
        assert names[1] not in udp

    asyncio.run(body())


LINE = "   0: {} {} {} 00000000:00000000 00:00000000 00000000     0        0 {} 1 0000000000000000 100 0 0 10 0"


@pytest.mark.parametrize(
    ("local", "remote", "state", "address", "port"),
    [
        ("0100007F:1000", "00000000:0000", "0A", "127.0.0.1", 4096),
        ("00000000:0016", "00000000:0000", "0A", "0.0.0.0", 22),
        ("B80D01200000000067452301EFCDAB89:0050", "0" * 32 + ":0000", "0A", "2001:db8::123:4567:89ab:cdef", 80),
        ("0" * 24 + "01000000:0050", "0" * 32 + ":0000", "0A", "::1", 80),
    ],
)
def test_addresses_are_read_as_the_kernel_writes_them(
    local: str, remote: str, state: str, address: str, port: int
) -> None:
    found = ports.parse(LINE.format(local, remote, state, 77), "tcp")
    assert found is not None
    assert (found.address, found.port, found.inode) == (address, port, "77")


@pytest.mark.parametrize(
    ("local", "remote", "state", "protocol"),
    [
        ("0100007F:1000", "0100007F:0016", "01", "tcp"),
        ("0100007F:1000", "00000000:0000", "07", "tcp"),
        ("0100007F:1000", "0100007F:0016", "01", "udp"),
        ("00000000:0000", "00000000:0000", "07", "udp"),
    ],
)
def test_what_does_not_listen_is_left_out(local: str, remote: str, state: str, protocol: str) -> None:
    assert ports.parse(LINE.format(local, remote, state, 77), protocol) is None
    assert ports.parse("garbage", protocol) is None


def test_secure_shell_is_not_probed_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str, int]] = []
    one, other = ports.Listener("tcp", "::", 22, "1"), ports.Listener("tcp", "0.0.0.0", 80, "2")

    def name(found: list[ports.Listener]) -> None:
        found[0].process = "sshd"

    def probe(targets: list[tuple[str, str, int]]) -> set[str]:
        asked.extend(targets)
        return set()

    monkeypatch.setattr(ports, "listeners", lambda: [one, other])
    monkeypatch.setattr(ports, "_name_processes", name)
    monkeypatch.setattr(ports, "speaks_http", probe)
    ports.report()
    assert asked == [("2", "127.0.0.1", 80)]


def test_ports_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    table = "header\n" + "\n".join(
        LINE.format(f"0100007F:{port:04X}", "00000000:0000", "0A", port) for port in range(1, 2000)
    )
    monkeypatch.setattr(ports, "read_all", lambda path, limit: table.encode())
    assert len(ports.listeners()) == ports.MAX_PORTS
