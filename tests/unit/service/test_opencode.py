"""The daemon brings opencode up: over the real agent, with a stand-in for init and one for the server."""

import asyncio
import base64
import contextlib
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from banger.config import Settings
from banger.jobs.operations import Job
from banger.model.errors import Conflict, Timeout
from banger.model.operation import EventKind, Operation, OperationState
from banger.service.opencode import Opencode
from tests.unit.service.pretend import VM_ID, paths_in, pretended, running_vm

HEALTHY = b'{"healthy":true,"version":"1"}'


def a_job() -> tuple[Job, list[str]]:
    """A job, and the names of the stages that ended well."""
    stages: list[str] = []

    def emit(kind: EventKind, data: dict[str, object]) -> None:
        if kind is EventKind.STAGE_END and data["ok"]:
            stages.append(str(data["stage"]))

    return Job(Operation(id="1", kind="k", target="t", state=OperationState.RUNNING, created_at=0.0), emit), stages


def guest_root(directory: Path) -> Path:
    """A guest's root with an opencode service, whose systemctl notes what it is asked."""
    root = directory / "root"
    for folder in ("run/systemd/system", "etc/systemd/system", "usr/bin"):
        (root / folder).mkdir(parents=True)
    (root / "etc/systemd/system/opencode.service").write_text("")
    program = root / "usr/bin/systemctl"
    program.write_text(f'#!/bin/sh\necho "$@" >> {root}/asked\n')
    program.chmod(0o755)
    return root


@contextlib.asynccontextmanager
async def server(port: int, password: str, body: bytes) -> AsyncIterator[None]:
    """An opencode that answers with the body, or 401."""
    wanted = b"Authorization: Basic " + base64.b64encode(f"opencode:{password}".encode())

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        status = b"200 OK" if wanted in head and head.startswith(b"GET /global/health ") else b"401 Unauthorized"
        writer.write(b"HTTP/1.1 %b\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % (status, len(body)) + body)
        await writer.drain()
        writer.close()

    serving = await asyncio.start_server(answer, "127.0.0.1", port)
    try:
        yield
    finally:
        serving.close()


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> int:
    """A free port that stands for 4096 here."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        number = int(free.getsockname()[1])
    monkeypatch.setattr("banger.service.opencode.OPENCODE_PORT", number)
    return number


def test_the_password_is_handed_over_and_the_server_waited_for(tmp_path: Path, port: int) -> None:
    async def body() -> None:
        root = guest_root(tmp_path)
        vm = running_vm(opencode=True, accelerator="tcg")
        async with pretended(tmp_path, "--root", str(root)) as (_, opencode, _), asyncio.timeout(60):
            job, stages = a_job()
            password = opencode.access(vm).password
            bringing = asyncio.create_task(opencode.bring_up(job, vm, wait=True))
            await asyncio.sleep(0.5)
            assert not bringing.done()
            async with server(port, password, HEALTHY):
                await bringing
        assert stages == ["start opencode", "opencode"]
        given = root / "run/banger/opencode.env"
        assert given.read_text() == f"OPENCODE_SERVER_PASSWORD={password}\n"
        assert given.stat().st_mode & 0o777 == 0o600
        assert (root / "asked").read_text() == "--no-block start opencode.service\n"

    asyncio.run(body())


def test_who_does_not_wait_returns_when_it_was_started(tmp_path: Path, port: int) -> None:
    async def body() -> None:
        root = guest_root(tmp_path)
        async with pretended(tmp_path, "--root", str(root)) as (_, opencode, _):
            job, stages = a_job()
            await opencode.bring_up(job, running_vm(opencode=True), wait=False)
        assert stages == ["start opencode"]
        assert (root / "asked").exists()

    asyncio.run(body())


@pytest.mark.parametrize("answer", [b"<html>hello</html>", b'{"healthy":false}', b"[" * 50_000, b"\xff" * 70_000, b""])
def test_an_answer_that_is_none_is_not_taken_for_one(tmp_path: Path, port: int, answer: bytes) -> None:
    async def body() -> None:
        vm = running_vm(opencode=True, accelerator="kvm")
        async with pretended(tmp_path, "--root", str(guest_root(tmp_path))) as (_, _, _):
            opencode = Opencode(paths_in(tmp_path), Settings(opencode_timeout_s=0.4))
            job, stages = a_job()
            async with server(port, opencode.access(vm).password, answer):
                with pytest.raises(Timeout, match="opencode in a") as caught:
                    await opencode.bring_up(job, vm, wait=True)
        assert stages == ["start opencode"]
        assert "opencode_timeout_s" in caught.value.hint

    asyncio.run(body())


def test_a_password_is_made_once_kept_private_and_a_damaged_one_is_told(tmp_path: Path) -> None:
    vm, other = running_vm(opencode=True), running_vm(opencode=True, id="ba9876543210")
    paths = paths_in(tmp_path)
    for one in (vm, other):
        paths.vm(one.id).state.mkdir(parents=True)
    opencode = Opencode(paths, Settings())
    access = opencode.access(vm)
    assert opencode.access(vm) == access
    assert opencode.access(other).password != access.password
    assert len(access.password) >= 32
    kept = paths.vm(VM_ID).opencode
    assert kept.stat().st_mode & 0o777 == 0o600
    kept.write_text("{}")
    with pytest.raises(Conflict, match="damaged"):
        opencode.access(vm)
    with pytest.raises(Conflict, match="no opencode"):
        opencode.access(msgspec.structs.replace(vm, opencode=False))


def test_more_time_is_given_to_a_cold_boot_and_to_emulation(tmp_path: Path) -> None:
    opencode = Opencode(paths_in(tmp_path), Settings(opencode_timeout_s=10))
    given = {
        (accelerator, cold): opencode.deadline_s(running_vm(accelerator=accelerator), cold=cold)
        for accelerator in ("kvm", "tcg")
        for cold in (False, True)
    }
    assert given == {("kvm", False): 10, ("kvm", True): 20, ("tcg", False): 40, ("tcg", True): 80}
