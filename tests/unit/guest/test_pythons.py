"""Every route of the agent on every Python that a guest may have, and what it costs in memory."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from banger.guest import protocol
from banger.guest.bundle import LIBRARY, agent_files
from banger.guest.channel import Guest
from banger.model.errors import Conflict, Invalid, Unsupported
from banger.model.guest import ExecExit, ExecRequest, GuestNetwork, IdentityChange
from banger.system.process import run
from tests.unit.guest.hybrid import AGENT, drop, guest
from tests.unit.guest.pythons import VERSIONS, require
from tests.unit.guest.roots import false_root, write

_DEADLINE = 60.0
RESIDENT_KIB = 15 * 1024


async def use_everything(machine: Guest, root: Path) -> None:
    """Each route once, as a host would use it."""
    health = await machine.health()
    assert health.agent_uptime_s is not None
    assert (await machine.info()).init == "openrc"
    assert [service.name for service in (await machine.services()).services] == ["sshd"]
    assert (await machine.ports()).ports is not None
    before = await machine.identity()
    change = IdentityChange(
        hostname="box-2",
        network=GuestNetwork("10.0.2.15/24", "10.0.2.2", ("10.0.2.3",)),
        clock_s=1.0,
        entropy=b"e" * 512,
        machine_id="0123456789abcdef" * 2,
        host_keys="new",
    )
    after = await machine.set_identity(change)
    assert after.machine_id == "0123456789abcdef" * 2
    assert after.ssh_host_keys != before.ssh_host_keys
    with pytest.raises(Invalid, match="hostname"):
        await machine.set_identity(IdentityChange(hostname="-"))
    with pytest.raises(Unsupported, match="opencode"):
        await machine.give_opencode_password("secret")
    with pytest.raises(Unsupported, match="no ext4"):
        await machine.grow("/proc")
    result = await machine.run(ExecRequest(argv=("sh", "-c", "cat; exit 3"), tty=False), stdin=b"x" * 200_000)
    assert (result.exit, len(result.stdout)) == (ExecExit(status=3), 200_000)
    await use_tunnel(machine)
    await use_files(root)
    await machine.shutdown()
    while not (root / "asked").exists():  # noqa: ASYNC110 (the answer comes before the shutdown)
        await asyncio.sleep(0.01)
    assert (root / "asked").read_text() == "poweroff\n"


async def use_tunnel(machine: Guest) -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server:
        reader, writer = await machine.tunnel("localhost", port)
        writer.write(b"y" * 1_000_000)
        writer.write_eof()
        assert await reader.read(-1) == b"y" * 1_000_000
        await drop(writer)
    with pytest.raises(Conflict, match="refused"):
        await machine.tunnel("127.0.0.1", port)


async def use_files(root: Path) -> None:
    """A tree out of the guest and into it again: POST /files with frames, as the command line sends them."""
    archive, end = await files(root, {"mode": "read", "path": str(root / "etc"), "as": "child"}, b"")
    assert end["entries"] >= 3
    document = {"mode": "write", "path": str(root / "copy"), "as": "contents"}
    _, end = await files(root, document, archive)
    assert (root / "copy/etc/ssh/ssh_host_ed25519_key").exists(), end


async def files(root: Path, document: dict[str, str], archive: bytes) -> tuple[bytes, dict[str, Any]]:
    reader, writer = await asyncio.open_unix_connection(root.parent / "agent.sock")
    body = json.dumps(document).encode()
    head = f"POST /files HTTP/1.1\r\nUpgrade: {protocol.FILES_UPGRADE}\r\nContent-Length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    assert b" 101 " in await reader.readuntil(b"\r\n\r\n")
    if document["mode"] == "write":
        for at in range(0, len(archive), protocol.MAX_PAYLOAD):
            writer.write(protocol.encode(protocol.STDIN, archive[at : at + protocol.MAX_PAYLOAD]))
        writer.write(protocol.encode(protocol.STDIN))
    received = b""
    while True:
        kind, length = protocol.HEADER.unpack(await reader.readexactly(protocol.HEADER.size))
        payload = await reader.readexactly(length)
        if kind == protocol.EXIT:
            await drop(writer)
            return received, json.loads(payload)
        received += payload


def resident_kib(folder: Path) -> int:
    """VmRSS of the agent that serves below `folder`."""
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            words = status.with_name("cmdline").read_bytes().split(b"\0")
            lines = status.read_text().splitlines()
        except OSError:
            continue
        if b"--unix" in words and str(folder / "agent.sock").encode() in words:
            return int(next(line for line in lines if line.startswith("VmRSS:")).split()[1])
    raise AssertionError("the agent does not run")


def install(folder: Path, python: str) -> Path:
    """The agent as an image holds it, with bytecode: without it each module costs memory to compile."""
    for name, (content, _mode) in agent_files().items():
        if name.endswith(".py"):
            write(folder, name, content.decode())
    asyncio.run(run([python, "-I", "-m", "compileall", "-q", str(folder)], timeout=_DEADLINE))
    return folder / LIBRARY / "banger/guest/agent/__main__.py"


@pytest.mark.parametrize("version", VERSIONS)
def test_all_routes_work_and_leave_the_agent_small(tmp_path: Path, version: str) -> None:
    python = require(version)
    root = false_root(tmp_path / "root")
    program = root / "usr/sbin/power"
    program.write_text(f'#!/bin/sh\necho "$1" >{root}/asked.tmp && mv {root}/asked.tmp {root}/asked\n')
    program.chmod(0o755)
    options = ("--root", str(root), "--shutdown-program", str(program))

    main = install(tmp_path / "library", python)

    async def body() -> int:
        async with asyncio.timeout(_DEADLINE), guest(tmp_path, *options, python=python, main=main) as machine:
            await use_everything(machine, root)
            return resident_kib(tmp_path)

    assert asyncio.run(body()) < RESIDENT_KIB


@pytest.mark.parametrize("version", VERSIONS)
def test_every_module_loads(version: str) -> None:
    names = [path.stem for path in AGENT.parent.glob("*.py") if path.stem != "__main__"]
    script = (
        f"import sys; sys.path.insert(0, {str(AGENT.parents[3])!r})\n"
        f"for name in {names!r}: __import__('banger.guest.agent.' + name)"
    )
    argv = [require(version), "-I", "-S", "-B", "-W", "error", "-c", script]
    asyncio.run(run(argv, timeout=_DEADLINE))
