"""QEMU's monitor: commands with a deadline, descriptors, and whether the guest runs."""

import asyncio
import contextlib
import logging
import socket
from typing import Any

from qemu.qmp import EventListener, ExecInterruptedError, Message, QMPClient, QMPError

from banger.model.errors import CommandFailed

DEADLINE_S = 10.0
QUIT_DEADLINE_S = 3.0
_EVENTS = ("STOP", "RESUME", "BLOCK_IO_ERROR")
log = logging.getLogger("banger-vmm")


class Qmp:
    """One QEMU's monitor. `running` follows the guest, also when QEMU itself pauses it, as on a full disk."""

    def __init__(self, name: str) -> None:
        self._client = QMPClient(name)
        self._following: asyncio.Task[None] | None = None
        self.running = False

    async def connect(self, sock: socket.socket) -> None:
        """Return once QEMU has made its devices and answers. Raises `QMPError`, `OSError`."""
        await self._client.connect(sock)
        listener = EventListener(_EVENTS)
        self._client.register_listener(listener)
        self._following = asyncio.create_task(self._follow(listener))

    async def _follow(self, listener: EventListener) -> None:
        async for event in listener:
            if event["event"] == "BLOCK_IO_ERROR":
                self._io_error(event)
            else:
                self.running = event["event"] == "RESUME"

    @staticmethod
    def _io_error(event: Message) -> None:
        data = event["data"]
        assert isinstance(data, dict)
        pause = "; the guest is paused until PATCH /vm resumes it" if data.get("action") == "stop" else ""
        log.error("a drive's %s failed: %s%s", data.get("operation"), data.get("reason"), pause)

    async def execute(self, name: str, **arguments: object) -> Any:
        """Run a command, `_` standing for `-` in names; its result. Raises `CommandFailed`."""
        words = {key.replace("_", "-"): value for key, value in arguments.items()}
        return await self._execute(name, words)

    async def _execute(self, name: str, arguments: dict[str, object]) -> Any:
        try:
            async with asyncio.timeout(DEADLINE_S):
                return await self._client.execute(name, arguments or None)
        except (QMPError, TimeoutError) as error:
            raise CommandFailed(f"QEMU refused {name}: {error or 'no answer'}") from error

    async def throttle(self, device: str, limits: dict[str, int]) -> None:
        """`block_set_io_throttle`, the one command here whose words have underscores."""
        await self._execute("block_set_io_throttle", {"id": device, **limits})

    async def add_fd(self, fd: int) -> int:
        """Give QEMU a descriptor; the number of the set that holds it."""
        self._client.send_fd_scm(fd)
        return int((await self.execute("add-fd"))["fdset-id"])

    async def quit(self) -> None:
        """Ask QEMU to end; it flushes its disks first. An answer is not owed."""
        with contextlib.suppress(QMPError, ExecInterruptedError, TimeoutError):
            async with asyncio.timeout(QUIT_DEADLINE_S):
                await self._client.execute("quit")

    async def close(self) -> None:
        """Idempotent."""
        if self._following is not None:
            self._following.cancel()
            await asyncio.gather(self._following, return_exceptions=True)
        with contextlib.suppress(QMPError, EOFError, OSError):
            await self._client.disconnect()
