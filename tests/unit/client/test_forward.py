"""Forwarded ports: many connections, services that come and go, and nothing left open."""

import asyncio
import contextlib
import hashlib
import os
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from banger.client.forward import Forwarder
from banger.client.loopback import Forward
from banger.client.tunnel import Tunnel, open_tunnel
from banger.model.errors import Conflict, Invalid, NotFound
from tests.unit.client import fake

LIMIT_S = 60.0


def descriptors() -> int:
    return len([*Path("/proc/self/fd").iterdir()])


@contextlib.asynccontextmanager
async def forwarding(
    guest: fake.Guest, *ports: int, told: Callable[[str], None] = lambda _: None
) -> AsyncIterator[Forwarder]:
    """Ports of the guest at free ports of the loopback."""
    forwards = [Forward(0, "127.0.0.1", port) for port in ports]
    async with Forwarder(lambda host, port: open_tunnel(guest.vm, host, port), forwards, told=told) as made:
        yield made


async def ask(port: int, data: bytes, host: str = "127.0.0.1") -> bytes:
    """Send, end, and return what comes back until the end."""
    reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write(data)
        writer.write_eof()
        return await reader.read()
    finally:
        writer.transport.abort()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


def run(body: Callable[[], Awaitable[None]]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(LIMIT_S):
            await body()

    asyncio.run(limited())


def test_a_thousand_connections_one_after_the_other_and_a_hundred_at_once(tmp_path: Path) -> None:
    async def body() -> None:
        async with forwarding(guest, port) as forwarder:
            local = forwarder.forwards[0].local_port
            await ask(local, b"first")
            before = descriptors()
            for number in range(1000):
                assert await ask(local, b"%d" % number) == b"%d" % number
            sent = [bytes((number,)) * 100_000 for number in range(100)]
            assert await asyncio.gather(*(ask(local, data) for data in sent)) == sent
            traffic = forwarder.traffic
            for _ in range(1000):
                if not traffic.open:
                    break
                await asyncio.sleep(0.01)
            assert (traffic.total, traffic.failed) == (1101, 0)
            assert traffic.up == traffic.down == 5 + 2890 + 100 * 100_000
            assert descriptors() <= before + 10  # the stand-in's threads may lag

    with fake.guest(tmp_path) as guest, fake.service(fake.echo) as port:
        before = descriptors()
        run(body)
    assert descriptors() <= before


def test_both_loopback_addresses_lead_there(tmp_path: Path) -> None:
    async def body() -> None:
        async with forwarding(guest, port) as forwarder:
            local = forwarder.forwards[0].local_port
            assert await ask(local, b"four") == b"four"
            if has_ipv6():
                assert await ask(local, b"six", "::1") == b"six"

    with fake.guest(tmp_path) as guest, fake.service(fake.echo) as port:
        run(body)


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


def test_a_refused_port_costs_one_connection_and_is_told_once(tmp_path: Path) -> None:
    told: list[str] = []

    async def body() -> None:
        async with forwarding(guest, port, told=told.append) as forwarder:
            local = forwarder.forwards[0].local_port
            for _ in range(3):
                with pytest.raises(ConnectionResetError):
                    await ask(local, b"x")
            assert len(told) == 1
            assert told[0].startswith(f"port {port}: demo: cannot connect to 127.0.0.1:{port}")
            with fake.service(fake.echo, port):
                assert await ask(local, b"back") == b"back"
            with pytest.raises(ConnectionResetError):
                await ask(local, b"x")
            assert len(told) == 2  # it worked in between, so it is news
            assert forwarder.traffic.failed == 4

    with fake.service(fake.echo) as port:
        pass
    with fake.guest(tmp_path) as guest:
        run(body)


def test_the_guest_may_go_and_come_back(tmp_path: Path) -> None:
    async def body() -> None:
        async with forwarding(fake.Guest(tmp_path / "v.sock"), port) as forwarder:
            local = forwarder.forwards[0].local_port
            for _ in range(2):
                with fake.guest(tmp_path):
                    assert await ask(local, b"there") == b"there"
                with pytest.raises(ConnectionResetError):
                    await ask(local, b"gone")

    with fake.service(fake.echo) as port:
        run(body)


def test_a_slow_reader_stops_the_sender(tmp_path: Path) -> None:
    """Nothing is kept beyond the buffers: the guest's service cannot send what nobody takes."""
    sent = 0
    stop = threading.Event()

    def flood(stream: socket.socket) -> None:
        nonlocal sent
        while not stop.is_set():
            sent += stream.send(b"x" * 65536)

    async def body() -> None:
        async with forwarding(guest, port) as forwarder:
            _, writer = await asyncio.open_connection("127.0.0.1", forwarder.forwards[0].local_port, limit=1024)
            before, quiet = -1, 0
            while quiet < 10:  # until for half a second nothing more goes in
                quiet = quiet + 1 if sent == before else 0
                before = sent
                await asyncio.sleep(0.05)
            assert 0 < sent < 40 << 20  # the kernel's own buffers of four sockets
            stop.set()
            writer.transport.abort()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    with fake.guest(tmp_path) as guest, fake.service(flood) as port:
        run(body)


def test_large_bodies_are_the_same_at_the_other_end(tmp_path: Path) -> None:
    data = os.urandom(1 << 20) * 16

    def digest(stream: socket.socket) -> None:
        seen = hashlib.sha256()
        while part := stream.recv(1 << 16):
            seen.update(part)
        stream.sendall(seen.digest())

    async def body() -> None:
        async with forwarding(guest, port) as forwarder:
            local = forwarder.forwards[0].local_port
            assert await ask(local, data) == hashlib.sha256(data).digest()

    with fake.guest(tmp_path) as guest, fake.service(digest) as port:
        run(body)


def test_a_cut_connection_is_seen_as_a_failure(tmp_path: Path) -> None:
    """The client must not take half an answer for a whole one."""

    async def body() -> None:
        async with forwarding(guest, 80) as forwarder:
            reader, writer = await asyncio.open_connection("127.0.0.1", forwarder.forwards[0].local_port)
            assert await reader.readexactly(4) == b"half"
            await forwarder.__aexit__(None, None, None)
            with pytest.raises(ConnectionResetError):
                await reader.read()
            writer.transport.abort()

    def serve(stream: socket.socket) -> None:
        fake.read_until(stream, b"\n")
        stream.sendall(fake.OK)
        fake.read_until(stream, b"\r\n\r\n")
        stream.sendall(b"HTTP/1.1 200 OK\r\n\r\nhalf")
        stream.recv(1)

    with fake.listening(tmp_path / "v.sock", serve):
        guest = fake.Guest(tmp_path / "v.sock")
        run(body)


def test_all_taken_ports_are_named_and_none_stays_bound(tmp_path: Path) -> None:
    async def nothing(_: str, __: int) -> Tunnel:
        raise AssertionError("nobody has connected")

    async def body() -> None:
        forwards = [Forward(free, "localhost", 80), *(Forward(port, "localhost", 80) for port in taken)]
        with pytest.raises(Conflict) as caught:
            async with Forwarder(nothing, forwards):
                pass
        assert all(f"local port {port} is taken by " in caught.value.message for port in taken)
        assert f"(pid {os.getpid()})" in caught.value.message
        async with Forwarder(nothing, forwards[:1]):
            pass

    with fake.service(fake.echo) as free:
        pass
    with fake.service(fake.echo) as one, fake.service(fake.echo) as two:
        taken = (one, two)
        run(body)


def test_one_local_port_cannot_lead_to_two_places() -> None:
    async def nothing(_: str, __: int) -> Tunnel:
        raise AssertionError("nobody has connected")

    async def body() -> None:
        with pytest.raises(Invalid, match="two forwards want local port 8080"):
            async with Forwarder(nothing, [Forward(8080, "a", 80), Forward(8080, "b", 80)]):
                pass
        async with Forwarder(nothing, [Forward(0, "a", 80), Forward(0, "b", 80)]) as forwarder:
            assert len({forward.local_port for forward in forwarder.forwards} - {0}) == 2

    run(body)


def test_a_deleted_machine_ends_it() -> None:
    async def deleted(_: str, __: int) -> Tunnel:
        raise NotFound("there is no VM demo")

    async def body() -> None:
        async with Forwarder(deleted, [Forward(0, "localhost", 80)]) as forwarder:
            running = asyncio.create_task(forwarder.run())
            with pytest.raises(ConnectionResetError):
                await ask(forwarder.forwards[0].local_port, b"x")
            with pytest.raises(NotFound):
                await running

    run(body)
