"""CONNECT: a tunnel to a TCP port of the guest."""

import asyncio
import hashlib
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from banger.guest.agent.http1 import Refused
from banger.guest.agent.tunnel import parse_target
from banger.guest.channel import Guest
from banger.model.errors import Conflict, Invalid
from tests.unit.guest.hybrid import drop, guest

MB = 1 << 20
_DEADLINE = 60.0
Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def run(folder: Path, test: Callable[[Guest], Awaitable[None]]) -> None:
    async def body() -> None:
        async with asyncio.timeout(_DEADLINE), guest(folder) as machine:
            await test(machine)

    asyncio.run(body())


@asynccontextmanager
async def serving(handler: Handler, port: int = 0) -> AsyncIterator[int]:
    server = await asyncio.start_server(handler, "127.0.0.1", port)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def test_many_bytes_both_ways_at_once_come_through_unchanged(tmp_path: Path) -> None:
    data = os.urandom(8 * MB)

    async def send(writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        await writer.drain()
        writer.write_eof()

    async def test(machine: Guest) -> None:
        async with serving(echo) as port:
            reader, writer = await machine.tunnel("127.0.0.1", port)
            sender = asyncio.create_task(send(writer))
            back = await reader.read(-1)
            await sender
            await drop(writer)
        assert hashlib.sha256(back).digest() == hashlib.sha256(data).digest()

    run(tmp_path, test)


def test_end_of_our_direction_arrives_while_the_answer_still_comes(tmp_path: Path) -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        question = await reader.read(-1)
        for _ in range(20):
            writer.write(question * 10_000)
            await writer.drain()
        writer.close()

    async def test(machine: Guest) -> None:
        async with serving(handler) as port:
            reader, writer = await machine.tunnel("127.0.0.1", port)
            writer.write(b"question")
            writer.write_eof()
            assert await reader.read(-1) == b"question" * 200_000
            await drop(writer)

    run(tmp_path, test)


def test_end_of_the_guests_direction_arrives_while_we_still_send(tmp_path: Path) -> None:
    received: asyncio.Future[bytes]

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello")
        writer.write_eof()
        received.set_result(await reader.read(-1))
        await drop(writer)

    async def test(machine: Guest) -> None:
        nonlocal received
        received = asyncio.get_running_loop().create_future()
        async with serving(handler) as port:
            reader, writer = await machine.tunnel("127.0.0.1", port)
            assert await reader.read(-1) == b"hello"
            writer.write(b"z" * MB)
            writer.write_eof()
            assert await received == b"z" * MB
            await drop(writer)

    run(tmp_path, test)


def test_host_that_leaves_ends_the_guests_connection_even_after_a_half_close(tmp_path: Path) -> None:
    """A service that says nothing, as one that streams events, must not keep the tunnel for ever."""

    async def test(machine: Guest) -> None:
        for half in (False, True):
            ended = asyncio.Event()

            async def handler(
                reader: asyncio.StreamReader, writer: asyncio.StreamWriter, ended: asyncio.Event = ended
            ) -> None:
                await reader.read(-1)
                try:
                    while True:
                        writer.write(b".")
                        await writer.drain()
                        await asyncio.sleep(0.02)
                except OSError:
                    ended.set()
                await drop(writer)

            async with serving(handler) as port:
                reader, writer = await machine.tunnel("127.0.0.1", port)
                if half:
                    writer.write_eof()
                    assert await reader.readexactly(1) == b"."
                await drop(writer)
                await ended.wait()

    run(tmp_path, test)


def test_silent_service_of_a_host_that_left_is_closed(tmp_path: Path) -> None:
    async def test(machine: Guest) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            _reader, writer = await machine.tunnel("127.0.0.1", listener.getsockname()[1])
            with listener.accept()[0] as service:
                writer.write_eof()
                assert await asyncio.to_thread(service.recv, 1) == b""
                await drop(writer)
                while established(service):  # noqa: ASYNC110 (the agent is another process)
                    await asyncio.sleep(0.05)

    run(tmp_path, test)


def established(service: socket.socket) -> bool:
    """Whether the other end still has its socket: it resets a byte that comes for a closed one."""
    try:
        service.send(b"?")
    except OSError:
        return False
    return True


def test_what_was_sent_before_leaving_arrives(tmp_path: Path) -> None:
    received: asyncio.Future[int]

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"banner that nobody reads")
        received.set_result(len(await reader.read(-1)))
        await drop(writer)

    async def test(machine: Guest) -> None:
        nonlocal received
        received = asyncio.get_running_loop().create_future()
        async with serving(handler) as port:
            _reader, writer = await machine.tunnel("127.0.0.1", port)
            writer.write(b"z" * 300_000)
            await writer.drain()
            writer.close()
            assert await received == 300_000

    run(tmp_path, test)


def test_slow_reader_stops_the_service_and_loses_nothing(tmp_path: Path) -> None:
    sent = 0

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        while sent < 64 * MB:
            writer.write(bytes(MB))
            sent += MB
            await writer.drain()
        await drop_after_flush(writer)

    async def test(machine: Guest) -> None:
        async with serving(handler) as port:
            reader, writer = await machine.tunnel("127.0.0.1", port)
            before = -1
            while before != sent:
                before = sent
                await asyncio.sleep(0.1)
            assert sent < 64 * MB
            got = 0
            while data := await reader.read(MB):
                got += len(data)
            assert got == 64 * MB
            await drop(writer)

    run(tmp_path, test)


async def drop_after_flush(writer: asyncio.StreamWriter) -> None:
    writer.close()
    await writer.wait_closed()


def test_service_that_comes_later_is_waited_for(tmp_path: Path) -> None:
    async def test(machine: Guest) -> None:
        port = free_port()
        waiting = asyncio.create_task(machine.tunnel("127.0.0.1", port, wait_s=30))
        await asyncio.sleep(0.3)
        assert not waiting.done()
        async with serving(echo, port):
            reader, writer = await waiting
            writer.write(b"x")
            assert await reader.readexactly(1) == b"x"
            await drop(writer)

    run(tmp_path, test)


def test_nothing_there_is_said_at_once_or_after_the_wait(tmp_path: Path) -> None:
    async def test(machine: Guest) -> None:
        port = free_port()
        with pytest.raises(Conflict, match=f"cannot connect to 127.0.0.1:{port}: Connection refused"):
            await machine.tunnel("127.0.0.1", port)
        with pytest.raises(Conflict, match=r"within 0\.3 s: Connection refused"):
            await machine.tunnel("127.0.0.1", port, wait_s=0.3)
        with pytest.raises(Conflict, match="was not found"):
            await machine.tunnel("no-such-name.invalid", port)

    run(tmp_path, test)


def test_impossible_targets_are_refused(tmp_path: Path) -> None:
    async def test(machine: Guest) -> None:
        for host, port, wait in (("x", 0, 0.0), ("x", 65536, 0.0), ("", 1, 0.0), ("x", 1, 4000.0), ("a b", 1, 0.0)):
            with pytest.raises(Invalid):
                await machine.tunnel(host, port, wait_s=wait)

    run(tmp_path, test)


@pytest.mark.parametrize("target", ["", "x", "x:", ":1", "x:0", "x:65536", "x:\xb2", "x:-1", "::1:22", "[::1]", "/x"])
def test_malformed_targets(target: str) -> None:
    with pytest.raises(Refused):
        parse_target(target)


def test_targets() -> None:
    assert parse_target("localhost:4096") == ("localhost", 4096)
    assert parse_target("[::1]:22") == ("::1", 22)
