"""A running VM without a machine: our own process as its engine, an API that says Running, the real agent behind."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec

from banger.config import Settings
from banger.jobs.operations import Operations
from banger.model.vm import EngineProcess, Vm
from banger.paths import Paths
from banger.service.admission import Admission
from banger.service.bundle import RuntimeBundle
from banger.service.disks import Disks
from banger.service.health import Checks
from banger.service.opencode import Opencode
from banger.service.seeds import WorkSeeds
from banger.system.host import boot_id, start_ticks
from tests.unit.guest.hybrid import agent, listening, splice
from tests.unit.test_store import make_vm

VM_ID = "0123456789ab"


def paths_in(directory: Path) -> Paths:
    return Paths(directory / "s", directory / "r", directory / "c")


def disks_of(paths: Paths, operations: Operations) -> Disks:
    admission, bundle = Admission(paths, Settings()), RuntimeBundle(paths, Settings())
    return Disks(paths, admission, WorkSeeds(paths, bundle, operations, admission.room), bundle)


def running_vm(**changes: object) -> Vm:
    """A VM whose engine is this very process."""
    process = EngineProcess(pid=os.getpid(), start_ticks=start_ticks(os.getpid()) or 0, boot_id=boot_id())
    return msgspec.structs.replace(make_vm("a", VM_ID), process=process, **changes)


class PretendedEngine:
    """Answers `GET /` with its state, and PATCHes of it with 204 or, while it has one, with its fault.

    One that relapses is paused again when it was resumed.
    """

    def __init__(self) -> None:
        self.state = "Running"
        self.fault = ""
        self.relapses = False
        self.asked: list[str] = []

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        self.asked.append(head.split(" HTTP", 1)[0])
        if head.startswith("GET"):
            document = {"id": VM_ID, "state": self.state, "vmm_version": "1", "app_name": "pretended"}
            self._say(writer, "200 OK", document)
        elif self.fault:
            self._say(writer, "400 Bad Request", {"fault_message": self.fault})
        else:
            length = int(head.lower().split("content-length: ")[1].split()[0])
            wanted = msgspec.json.decode(await reader.readexactly(length))["state"]
            self.state = "Running" if wanted == "Resumed" and not self.relapses else "Paused"
            writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")
        await writer.drain()

    @staticmethod
    def _say(writer: asyncio.StreamWriter, status: str, document: dict[str, str]) -> None:
        body = msgspec.json.encode(document)
        head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)


@contextlib.asynccontextmanager
async def pretended(
    directory: Path, *options: str, engine: PretendedEngine | None = None
) -> AsyncIterator[tuple[Checks, Opencode, Path]]:
    """The checks and opencode of a VM that runs, and its agent's own socket, which ends it when it is removed."""
    paths = paths_in(directory)
    vm = paths.vm(VM_ID)
    for folder in (vm.state, vm.runtime):
        folder.mkdir(parents=True, exist_ok=True)
    opencode = Opencode(paths, Settings(opencode_timeout_s=5))
    async with (
        agent(directory, *options) as inner,
        listening(vm.api_socket, (engine or PretendedEngine()).answer),
        listening(vm.vsock_socket, lambda reader, writer: splice(inner, reader, writer)),
    ):
        yield Checks(paths, opencode), opencode, inner
