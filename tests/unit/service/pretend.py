"""A running VM without a machine: our own process as its engine, an API that says Running, the real agent behind."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec

from banger.config import Settings
from banger.model.vm import EngineProcess, Vm
from banger.paths import Paths
from banger.service.health import Checks
from banger.service.opencode import Opencode
from banger.system.host import boot_id, start_ticks
from tests.unit.guest.hybrid import agent, listening, splice
from tests.unit.test_store import make_vm

VM_ID = "0123456789ab"


def paths_in(directory: Path) -> Paths:
    return Paths(directory / "s", directory / "r", directory / "c")


def running_vm(**changes: object) -> Vm:
    """A VM whose engine is this very process."""
    process = EngineProcess(pid=os.getpid(), start_ticks=start_ticks(os.getpid()) or 0, boot_id=boot_id())
    return msgspec.structs.replace(make_vm("a", VM_ID), process=process, **changes)


async def _engine(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    body = b'{"id":"0123456789ab","state":"Running","vmm_version":"1","app_name":"pretended"}'
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    await writer.drain()


@contextlib.asynccontextmanager
async def pretended(directory: Path, *options: str) -> AsyncIterator[tuple[Checks, Opencode, Path]]:
    """The checks and opencode of a VM that runs, and its agent's own socket, which ends it when it is removed."""
    paths = paths_in(directory)
    vm = paths.vm(VM_ID)
    for folder in (vm.state, vm.runtime):
        folder.mkdir(parents=True)
    opencode = Opencode(paths, Settings(opencode_timeout_s=5))
    async with (
        agent(directory, *options) as inner,
        listening(vm.api_socket, _engine),
        listening(vm.vsock_socket, lambda reader, writer: splice(inner, reader, writer)),
    ):
        yield Checks(paths, opencode), opencode, inner
