"""The vsock device in an event loop."""

import asyncio
import hashlib
import os
import socket
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from banger.qemu.vsock.limits import Limits
from banger.qemu.vsock.packet import CREDIT_UPDATE, STREAM, Header
from banger.qemu.vsock.service import VsockService
from tests.support.rings import CID, FrontEnd, Guest, descriptors

FEATURES = 0x1_7000_0000


@asynccontextmanager
async def served(path: Path, limits: Limits | None = None) -> AsyncIterator[tuple[VsockService, Guest]]:
    """A started service with a booted guest, both in this loop."""
    ours, theirs = socket.socketpair()
    service = VsockService(ours, guest_cid=CID, uds_path=str(path), limits=limits)
    service.start()
    front = FrontEnd(theirs, lambda: None)
    guest = Guest(front.memory)
    loop = asyncio.get_running_loop()

    def boot() -> None:
        front.negotiate(FEATURES)
        front.share_memory()
        front.start((guest.rx, guest.tx))

    try:
        await asyncio.to_thread(boot)
        guest.post()
        for queue in (guest.rx, guest.tx):
            loop.add_reader(queue.call, guest.interrupt)
        yield service, guest
    finally:
        for queue in (guest.rx, guest.tx):
            loop.remove_reader(queue.call)
        service.close()
        guest.close()
        front.close()


def test_echo_through_the_event_loop(tmp_path: Path) -> None:
    data = os.urandom(4_000_000)

    async def scenario() -> bytes:
        async with served(tmp_path / "v.sock") as (_, guest), asyncio.timeout(20):
            guest.listening.add(52)
            reader, writer = await asyncio.open_unix_connection(tmp_path / "v.sock")
            writer.write(b"CONNECT 52\n" + data)
            assert (await reader.readline()).startswith(b"OK ")
            (peer,) = guest.sockets.values()
            digest, left = hashlib.sha256(), len(data)
            while left:
                peer.send(peer.read())
                try:
                    async with asyncio.timeout(0.001):
                        part = await reader.read(1 << 16)
                except TimeoutError:
                    continue
                digest.update(part)
                left -= len(part)
            writer.close()
            await writer.wait_closed()
            return digest.digest()

    assert asyncio.run(scenario()) == hashlib.sha256(data).digest()


def test_work_beyond_one_turn_goes_on_without_another_event(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with served(tmp_path / "v.sock", Limits(batch=4)) as (_, guest), asyncio.timeout(10):
            for port in range(20):
                guest.waiting.append((Header(CID, 2, 1, port, 0, STREAM, CREDIT_UPDATE), b""))
            guest.send(Header(CID, 2, 1, 20, 0, STREAM, CREDIT_UPDATE))
            while len(guest.inbox) < 21:  # noqa: ASYNC110 - this guest has no events to wait for
                await asyncio.sleep(0.005)

    asyncio.run(scenario())


def test_idle_service_takes_no_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> int:
        async with served(tmp_path / "v.sock") as (service, guest), asyncio.timeout(10):
            guest.listening.add(52)
            reader, writer = await asyncio.open_unix_connection(tmp_path / "v.sock")
            writer.write(b"CONNECT 52\n")
            await reader.readline()
            await asyncio.sleep(0.05)
            turns, step = 0, service._backend.step

            def counted() -> bool:
                nonlocal turns
                turns += 1
                return step()

            monkeypatch.setattr(service._backend, "step", counted)
            await asyncio.sleep(0.2)
            writer.close()
            await writer.wait_closed()
            return turns

    assert asyncio.run(scenario()) == 0


def test_deadlines_work_without_traffic(tmp_path: Path) -> None:
    async def scenario() -> bytes:
        async with served(tmp_path / "v.sock", Limits(line_time=0.05)), asyncio.timeout(10):
            reader, writer = await asyncio.open_unix_connection(tmp_path / "v.sock")
            try:
                return await reader.read()
            finally:
                writer.close()
                await writer.wait_closed()

    assert asyncio.run(scenario()) == b""


def test_front_end_that_hangs_up_closes_everything_and_says_so_once(tmp_path: Path) -> None:
    path = tmp_path / "v.sock"

    async def scenario() -> int:
        closed = asyncio.Event()
        calls = 0

        def on_closed() -> None:
            nonlocal calls
            calls += 1
            closed.set()

        ours, theirs = socket.socketpair()
        service = VsockService(ours, guest_cid=CID, uds_path=str(path), on_closed=on_closed)
        service.start()
        theirs.close()
        async with asyncio.timeout(10):
            await closed.wait()
        service.close()
        return calls

    before = descriptors()
    assert asyncio.run(scenario()) == 1
    assert not path.exists()
    assert descriptors() == before


def test_close_ends_clients_and_leaves_no_file_and_no_descriptor(tmp_path: Path) -> None:
    path = tmp_path / "v.sock"

    async def scenario() -> bytes:
        async with served(path) as (service, guest), asyncio.timeout(10):
            guest.listening.add(52)
            reader, writer = await asyncio.open_unix_connection(path)
            writer.write(b"CONNECT 52\n")
            await reader.readline()
            service.close()
            service.close()
            rest = await reader.read()
            writer.close()
            await writer.wait_closed()
            return rest

    before = descriptors()
    assert asyncio.run(scenario()) == b""
    assert not path.exists()
    assert descriptors() == before


def test_socket_is_the_owners_and_an_existing_file_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "v.sock"
    before = descriptors()
    ours, theirs = socket.socketpair()
    service = VsockService(ours, guest_cid=CID, uds_path=str(path))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    again, other = socket.socketpair()
    with pytest.raises(OSError, match="Address already in use"):
        VsockService(again, guest_cid=CID, uds_path=str(path))
    assert path.exists()
    service.close()
    for sock in (theirs, again, other):
        sock.close()
    assert descriptors() == before
