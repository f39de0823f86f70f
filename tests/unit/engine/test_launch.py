"""Starting an engine, and knowing it again, with small programs in an engine's place."""

import asyncio
import errno
import os
import stat
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import psutil
import pytest

from banger.engine import launch as launching
from banger.engine.capabilities import qemu_capabilities
from banger.engine.launch import adopt, alive, end, find_engine, launch
from banger.engine.select import Accelerator, Engine
from banger.images.locks import image_in_use
from banger.model.errors import CommandFailed
from banger.model.vm import EngineProcess
from banger.paths import Paths
from banger.system.host import boot_id, command_lines, start_ticks
from tests.unit.engine.test_jail import MACHINE
from tests.unit.images.test_locks import locked

ANSWERS = """
import socket, sys, time
path = sys.argv[sys.argv.index("--api-sock") + 1]
s = socket.socket(socket.AF_UNIX); s.bind(path); time.sleep(0.1); s.listen()
body = b'{"app_name":"x","id":"%s","state":"Running","vmm_version":"1"}' % sys.argv[sys.argv.index("--id") + 1].encode()
while True:
    c = s.accept()[0]
    if c.recv(4096):
        c.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: %d\\r\\n\\r\\n" % len(body) + body)
    c.close()
"""


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    made = Paths(tmp_path / "s", tmp_path / "r", tmp_path / "c")
    made.vm(MACHINE.id).state.mkdir(parents=True)
    return made


def engine(script: str) -> Engine:
    return Engine(
        name="qemu",
        version="1",
        program=(sys.executable, "-c", script),
        jailer=None,
        capabilities=qemu_capabilities("1"),
        accelerator=Accelerator("tcg", "", ""),
        reason="",
    )


def started(paths: Paths, then: Callable[[EngineProcess], Awaitable[None]]) -> None:
    async def main() -> None:
        process = await launch(engine(ANSWERS), MACHINE, paths.vm(MACHINE.id))
        try:
            await then(process)
        finally:
            await end(process)
        assert not alive(process)

    asyncio.run(main())


def test_it_is_there_when_it_answers_and_known_again(paths: Paths) -> None:
    async def then(process: EngineProcess) -> None:
        assert psutil.Process(process.pid).cmdline()[-8:] == [
            *("--api-sock", str(paths.vm(MACHINE.id).api_socket), "--id", MACHINE.id),
            *("--log-path", str(paths.vm(MACHINE.id).engine_log), "--level", "Info"),
        ]
        assert os.getsid(process.pid) == process.pid
        assert await adopt(process, MACHINE.id, paths.vm(MACHINE.id))
        assert find_engine(MACHINE.id, paths.vm(MACHINE.id), paths.jail(MACHINE.id)) == process

    started(paths, then)


def test_another_vms_engine_another_process_and_a_recycled_pid_are_not_adopted(paths: Paths) -> None:
    async def then(process: EngineProcess) -> None:
        vm = paths.vm(MACHINE.id)
        assert not await adopt(process, "ba9876543210", vm)
        other = subprocess.Popen(["sleep", "60"])  # noqa: ASYNC220
        try:
            ticks = start_ticks(other.pid)
            assert ticks is not None
            # alive, and the socket answers with the right id: but it is not this process that answers
            assert not await adopt(EngineProcess(other.pid, ticks, boot_id()), MACHINE.id, vm)
            recycled = EngineProcess(process.pid, process.start_ticks - 1, boot_id())
            assert not await adopt(recycled, MACHINE.id, vm)
            await end(recycled)
            assert alive(process), "something was sent to a recycled pid"
            assert find_engine("ba9876543210", paths.vm("ba9876543210"), paths.jail("ba9876543210")) is None
        finally:
            other.kill()
            other.wait()

    started(paths, then)


def test_an_engine_holds_a_lock_that_it_inherits_until_it_ends(paths: Paths) -> None:
    image = paths.state / "root.ext4"
    image.write_bytes(b"root")
    image.chmod(0o444)

    async def main() -> None:
        with image_in_use(image) as held:
            process = await launch(engine(ANSWERS), MACHINE, paths.vm(MACHINE.id), inherit=(held,))
        try:
            assert locked(image)
        finally:
            await end(process)
        async with asyncio.timeout(10):  # its last threads, and with them its descriptors, may outlive it by a moment
            while locked(image):  # noqa: ASYNC110 - no event tells
                await asyncio.sleep(0.01)

    asyncio.run(main())


def test_an_engine_that_dies_is_told_with_its_last_words(paths: Paths) -> None:
    script = "import sys; sys.exit('the moon is in the wrong phase')"
    with pytest.raises(CommandFailed, match="the moon is in the wrong phase") as caught:
        asyncio.run(launch(engine(script), MACHINE, paths.vm(MACHINE.id)))
    assert "engine.log" in caught.value.hint


def sleepers(paths: Paths) -> list[int]:
    return [pid for pid, argv in command_lines().items() if str(paths.vm(MACHINE.id).api_socket) in argv]


def test_an_engine_that_never_answers_is_ended(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launching, "API_DEADLINE_S", 0.5)
    with pytest.raises(CommandFailed):
        asyncio.run(launch(engine("import time; time.sleep(60)"), MACHINE, paths.vm(MACHINE.id)))
    assert sleepers(paths) == []


def test_cancelling_a_start_ends_the_engine(paths: Paths) -> None:
    async def main() -> None:
        task = asyncio.create_task(launch(engine("import time; time.sleep(60)"), MACHINE, paths.vm(MACHINE.id)))
        while not sleepers(paths):  # noqa: ASYNC110 - no event tells
            await asyncio.sleep(0.02)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(main())
    assert sleepers(paths) == []


def test_logs_of_the_start_before_are_kept(paths: Paths) -> None:
    vm = paths.vm(MACHINE.id)
    vm.console_log.write_text("the console before")

    async def then(_: EngineProcess) -> None:
        assert vm.console_log.read_text() == ""
        assert vm.console_log.with_suffix(".previous.log").read_text() == "the console before"

    started(paths, then)


HEARS = f"""
import os, threading
def hear():
    while data := os.read(0, 4096):
        os.write(1, data)
    os.write(1, b"<end>")
threading.Thread(target=hear, daemon=True).start()
{ANSWERS}
"""


def write(path: Path, data: bytes) -> None:
    pipe = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
    try:
        assert os.write(pipe, data) == len(data)
    finally:
        os.close(pipe)


def test_whoever_comes_and_goes_types_on_the_console(paths: Paths) -> None:
    vm = paths.vm(MACHINE.id)

    async def main() -> None:
        vm.console_input.write_text("no pipe at all")
        for _ in range(2):
            process = await launch(engine(HEARS), MACHINE, vm)
            try:
                assert stat.S_IMODE(vm.console_input.stat().st_mode) == 0o600
                for text in (b"one ", b"two ", b"three"):
                    write(vm.console_input, text)
                async with asyncio.timeout(10):
                    while vm.console_log.read_bytes() != b"one two three":  # noqa: ASYNC110 - no event tells
                        await asyncio.sleep(0.01)
            finally:
                await end(process)
            await _until_nobody_hears(vm.console_input)

    asyncio.run(main())


async def _until_nobody_hears(path: Path) -> None:
    """An engine's last threads, and with them its descriptors, may outlive its end by a moment."""
    async with asyncio.timeout(10):
        while True:
            try:
                write(path, b"nobody hears")
            except OSError as error:
                assert error.errno == errno.ENXIO  # noqa: PT017 - the loop is what is tested
                return
            await asyncio.sleep(0.01)


def test_what_was_typed_and_never_read_is_not_typed_into_the_next_boot(paths: Paths) -> None:
    vm = paths.vm(MACHINE.id)

    async def main() -> None:
        deaf = await launch(engine(ANSWERS), MACHINE, vm)
        left = os.open(vm.console_input, os.O_WRONLY | os.O_NONBLOCK)
        # a writer is told that nobody takes it, and never waits
        with pytest.raises(BlockingIOError):
            _fill(left)
        await end(deaf)
        hearing = await launch(engine(HEARS), MACHINE, vm)
        try:
            with pytest.raises(BrokenPipeError):
                os.write(left, b"late")
            write(vm.console_input, b"fresh")
            async with asyncio.timeout(10):
                while not vm.console_log.read_bytes():  # noqa: ASYNC110 - no event tells
                    await asyncio.sleep(0.01)
            assert vm.console_log.read_bytes() == b"fresh"
        finally:
            os.close(left)
            await end(hearing)

    asyncio.run(main())


def _fill(pipe: int) -> None:
    while os.write(pipe, b"x" * 4096):
        pass
