"""QEMU's monitor: commands with a deadline, descriptors, and whether the guest runs."""

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable
from typing import Any

from qemu.qmp import ExecInterruptedError, Message, QMPClient, QMPError

from banger.model.engine import NO_SPACE, PAUSED, RESUMED
from banger.model.errors import CommandFailed

DEADLINE_S = 10.0
QUIT_DEADLINE_S = 3.0
# A write that found the disk full is tried again as soon as the guest runs on
AGAIN_S = 1.0
LOGGED_ERRORS = 100
log = logging.getLogger("banger-vmm")


class Qmp:
    """One QEMU's monitor.

    `running` follows the guest, also when QEMU itself pauses it; `stopped_by` says why then, and is empty when QEMU
    was asked to, or the guest runs. `drive_of` tells the drive's id from the name of its block node.
    """

    def __init__(self, name: str) -> None:
        self._client = QMPClient(name)
        # a filter hears each event as it comes, before the answer to what caused it, and lets none be kept
        self._client.events.event_filter = self._hear
        self._stopped = asyncio.Event()
        self._errors = 0
        self.running = False
        self.stopped_by = ""
        self.drive_of: Callable[[str], str] = str

    async def connect(self, sock: socket.socket) -> None:
        """Return once QEMU has made its devices and answers. Raises `QMPError`, `OSError`."""
        await self._client.connect(sock)

    def _hear(self, event: Message) -> bool:
        if event["event"] == "BLOCK_IO_ERROR":
            self._io_error(event.get("data"))
        elif event["event"] == "RESUME":
            if self.stopped_by:
                log.info(RESUMED)
            self.running, self.stopped_by = True, ""
            self._stopped.clear()
        elif event["event"] == "STOP":
            self.running = False
            self._stopped.set()
            self._tell()
        return False

    def _io_error(self, data: object) -> None:
        """QEMU tells of each request that failed, and then that it has paused the guest, if it does that."""
        assert isinstance(data, dict)
        drive, verb = self.drive_of(str(data.get("node-name", ""))), data.get("operation")
        if data.get("action") != "stop":
            self._errors += 1
            if self._errors <= LOGGED_ERRORS:
                log.error("drive %s: a %s failed: %s; the guest was told", drive, verb, data.get("reason"))
        elif not self.stopped_by:
            why = NO_SPACE if data.get("nospace") else f"a {verb} failed ({data.get('reason')})"
            self.stopped_by = f"{why} for drive {drive}"
            if not self.running:
                self._tell()

    def _tell(self) -> None:
        if self.stopped_by:
            log.warning("%s%s", PAUSED, self.stopped_by)

    async def resume(self) -> None:
        """Let the guest run. Raises `CommandFailed`: also when QEMU, which had paused it, does so again at once."""
        before = self.stopped_by
        await self.execute("cont")
        if before:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(AGAIN_S):
                    await self._stopped.wait()
                raise CommandFailed(f"the guest was resumed and paused again at once: {self.stopped_by}")

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
        with contextlib.suppress(QMPError, EOFError, OSError):
            await self._client.disconnect()
