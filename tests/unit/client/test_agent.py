"""The client's streams with the real agent at their other end."""

import asyncio
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from banger.client import guest as client
from banger.client.forward import Forwarder
from banger.client.loopback import Forward
from banger.client.ports import listening_ports
from banger.client.ssh import host_keys
from banger.client.tunnel import open_tunnel
from banger.model.documents import VmDocument
from banger.model.errors import Conflict
from tests.unit.client import fake
from tests.unit.guest import hybrid

LIMIT_S = 60.0


def with_agent(folder: Path, use: Callable[[VmDocument], None]) -> None:
    """Run `use`, which blocks, beside a loop that carries the agent's streams."""

    async def body() -> None:
        async with asyncio.timeout(LIMIT_S), hybrid.guest(folder):
            await asyncio.to_thread(use, fake.document(folder / "v.sock"))

    asyncio.run(body())


def test_a_port_that_listens_is_listed_with_its_process(tmp_path: Path) -> None:
    def use(vm: VmDocument) -> None:
        found = next(listed for listed in listening_ports(vm) if listed["port"] == port)
        assert (found["protocol"], found["addresses"], found["pid"]) == ("tcp", ["127.0.0.1"], os.getpid())
        assert isinstance(host_keys(vm), list)

    with fake.service(fake.echo) as port:
        with_agent(tmp_path, use)


def test_a_tunnel_carries_refuses_and_waits(tmp_path: Path) -> None:
    def use(vm: VmDocument) -> None:
        with pytest.raises(Conflict, match=f"localhost:{port}"):
            client.open_tunnel(vm, "localhost", port)
        with pytest.raises(Conflict, match=r"within 0\.2 s"):
            client.open_tunnel(vm, "localhost", port, wait_s=0.2)
        later = threading.Timer(0.3, ready.set)
        later.start()
        with client.open_tunnel(vm, "localhost", port, wait_s=LIMIT_S) as stream:
            stream.sendall(b"hello")
            assert fake.read_until(stream, b"hello") == b"hello"
        later.join()

    def serve() -> None:
        ready.wait(LIMIT_S)
        with fake.service(fake.echo, port):
            done.wait(LIMIT_S)

    ready, done = threading.Event(), threading.Event()
    with fake.service(fake.echo) as port:
        pass
    server = threading.Thread(target=serve)
    server.start()
    try:
        with_agent(tmp_path, use)
    finally:
        ready.set()
        done.set()
        server.join()


def test_a_forward_carries_megabytes_both_ways(tmp_path: Path) -> None:
    data = os.urandom(1 << 20) * 4

    async def body() -> bytes:
        async with asyncio.timeout(LIMIT_S), hybrid.guest(tmp_path):
            vm = fake.document(tmp_path / "v.sock")
            forwards = [Forward(0, "localhost", port)]
            async with Forwarder(lambda host, number: open_tunnel(vm, host, number), forwards) as forwarder:
                reader, writer = await asyncio.open_connection("127.0.0.1", forwarder.forwards[0].local_port)
                reading = asyncio.create_task(reader.read())
                writer.write(data)
                writer.write_eof()
                got = await reading
                await hybrid.drop(writer)
                return got

    with fake.service(fake.echo) as port:
        assert asyncio.run(body()) == data
