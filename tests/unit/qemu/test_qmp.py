"""What becomes of a guest that QEMU pauses by itself, with a stand-in at the other end of the monitor."""

import asyncio
import json
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from banger.model.errors import CommandFailed
from banger.qemu.qmp import AGAIN_S, LOGGED_ERRORS, Qmp, log

GREETING = {"QMP": {"version": {"qemu": {"micro": 0, "minor": 2, "major": 7}, "package": ""}, "capabilities": []}}


class Qemu:
    """Answers as QEMU does: events of a command come before its answer. `full`: writes find no room."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.full = False

    async def serve(self) -> None:
        reader, self._writer = await asyncio.open_connection(sock=self._sock)
        self._say(GREETING)
        async for command in self._commands(reader):
            if command["execute"] == "cont":
                self.event("RESUME")
            elif command["execute"] == "stop":
                self.event("STOP")
            self._say({"return": {}} | {key: command[key] for key in ("id",) if key in command})
            if command["execute"] == "cont" and self.full:
                self.fail(3)
        self._writer.close()

    @staticmethod
    async def _commands(reader: asyncio.StreamReader) -> AsyncIterator[dict[str, Any]]:
        """One JSON object after the other, with nothing between them."""
        text = ""
        while data := await reader.read(65536):
            text += data.decode()
            while text:
                try:
                    command, end = json.JSONDecoder().raw_decode(text)
                except ValueError:
                    break
                text = text[end:].lstrip()
                yield command

    def fail(self, writes: int, action: str = "stop", nospace: bool = True) -> None:
        reason = "No space left on device" if nospace else "Input/output error"
        told = {"device": "", "node-name": "disk1", "operation": "write", "action": action, "nospace": nospace}
        for _ in range(writes):
            self.event("BLOCK_IO_ERROR", told | {"reason": reason})
        if action == "stop":
            self.event("STOP")

    def event(self, name: str, data: dict[str, Any] | None = None) -> None:
        self._say({"event": name, "timestamp": {"seconds": 1, "microseconds": 2}} | ({"data": data} if data else {}))

    def _say(self, document: dict[str, Any]) -> None:
        self._writer.write(json.dumps(document).encode() + b"\r\n")


def drive(test: Callable[[Qmp, Qemu], Awaitable[None]]) -> None:
    """Run a test with a guest that runs."""

    async def main() -> None:
        ours, theirs = socket.socketpair()
        qmp, qemu = Qmp("a"), Qemu(theirs)
        qmp.drive_of = {"disk1": "work"}.__getitem__
        serving = asyncio.create_task(qemu.serve())
        async with asyncio.timeout(20):
            await qmp.connect(ours)
            assert not qmp.running
            await qmp.resume()
            assert qmp.running
            await test(qmp, qemu)
            await qmp.close()
            await serving

    asyncio.run(main())


async def stopped(qmp: Qmp) -> None:
    """Until what QEMU has said before is heard."""
    await qmp.execute("query-status")


def test_a_full_disk_pauses_and_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    async def test(qmp: Qmp, qemu: Qemu) -> None:
        qemu.fail(50)
        await stopped(qmp)
        assert not qmp.running
        assert qmp.stopped_by == "no space left on the host's disk for drive work"
        await qmp.resume()
        assert (qmp.running, qmp.stopped_by) == (True, "")

    with caplog.at_level(logging.INFO, logger=log.name):
        drive(test)
    said = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert said == [("WARNING", "paused: no space left on the host's disk for drive work"), ("INFO", "resumed")]


def test_a_guest_that_is_paused_again_at_once_has_not_been_resumed() -> None:
    async def test(qmp: Qmp, qemu: Qemu) -> None:
        qemu.full = True
        qemu.fail(1)
        await stopped(qmp)
        for _ in range(2):
            with pytest.raises(CommandFailed, match="paused again at once: no space left on the host's disk"):
                await qmp.resume()
            assert not qmp.running
        qemu.full = False
        await qmp.resume()
        assert qmp.running

    drive(test)


def test_a_guest_that_was_asked_to_pause_is_resumed_without_a_wait() -> None:
    async def test(qmp: Qmp, qemu: Qemu) -> None:
        loop = asyncio.get_running_loop()
        await qmp.execute("stop")
        assert not qmp.running
        begun = loop.time()
        await qmp.resume()
        assert loop.time() - begun < AGAIN_S
        assert qmp.running

    drive(test)


def test_other_errors_are_the_guests_and_do_not_fill_the_log(caplog: pytest.LogCaptureFixture) -> None:
    async def test(qmp: Qmp, qemu: Qemu) -> None:
        qemu.fail(3 * LOGGED_ERRORS, action="report", nospace=False)
        await stopped(qmp)
        assert (qmp.running, qmp.stopped_by) == (True, "")

    drive(test)
    said = [record.getMessage() for record in caplog.records]
    assert said == ["drive work: a write failed: Input/output error; the guest was told"] * LOGGED_ERRORS


def test_no_event_is_kept() -> None:
    async def test(qmp: Qmp, qemu: Qemu) -> None:
        for _ in range(100):
            qemu.event("BALLOON_CHANGE", {"actual": 1})
        await stopped(qmp)
        assert qmp._client.events.history == ()

    drive(test)
