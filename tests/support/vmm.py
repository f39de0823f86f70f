"""banger-vmm's API over a real Unix socket, with a machine behind it that only notes what it is told."""

import asyncio
import json
import logging
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Any

from banger.model.errors import CommandFailed
from banger.model.firecracker import BalloonStats, PartialDrive
from banger.qemu.api import Api
from banger.qemu.logs import LogHandler
from banger.qemu.machine import Configuration
from banger.qemu.metrics import Metrics
from banger.qemu.server import Server


class PretendedVmm:
    """Takes the place of QEMU."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.broken = False
        self.running = False
        self.live = self

    def _note(self, what: str) -> None:
        if self.broken:
            raise CommandFailed("no luck")
        self.told.append(what)

    async def start(self, config: Configuration) -> None:
        self._note("start")
        self.running = True

    async def pause(self) -> None:
        self._note("pause")
        self.running = False

    async def resume(self) -> None:
        self._note("resume")
        self.running = True

    async def ctrl_alt_del(self) -> None:
        self._note("ctrl-alt-del")

    async def patch_drive(self, change: PartialDrive) -> None:
        self._note(f"drive {change.drive_id}")

    async def inflate(self, memory_mib: int, amount_mib: int) -> None:
        self._note(f"balloon {amount_mib} of {memory_mib}")

    async def poll_balloon(self, seconds: int) -> None:
        self._note(f"poll {seconds}")

    async def balloon_stats(self, memory_mib: int, amount_mib: int) -> BalloonStats:
        return BalloonStats(target_pages=amount_mib * 256, actual_pages=0, target_mib=amount_mib, actual_mib=0)

    async def measured(self) -> dict[str, dict[str, int]]:
        return {"block": {"read_bytes": 512}}


class Client:
    """Asks as a Firecracker client does."""

    def __init__(self, path: Path, vmm: PretendedVmm) -> None:
        self.path = path
        self.vmm = vmm

    def open(self) -> socket.socket:
        stream = socket.socket(socket.AF_UNIX)
        stream.settimeout(10)
        stream.connect(str(self.path))
        return stream

    def raw(self, data: bytes) -> bytes:
        with self.open() as stream:
            stream.sendall(data)
            stream.shutdown(socket.SHUT_WR)
            reply = b""
            while chunk := stream.recv(65536):
                reply += chunk
            return reply

    def ask(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        data = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n\r\n".encode()
        first, _, rest = self.raw(head + data).partition(b"\r\n\r\n")
        return int(first.split()[1]), json.loads(rest) if rest else None

    def fault(self, method: str, path: str, body: Any = None) -> str:
        status, document = self.ask(method, path, body)
        assert status == 400, document
        assert list(document) == ["fault_message"]
        return str(document["fault_message"])


@contextmanager
def serving(path: Path) -> Iterator[Client]:
    """A client of a fresh API on the socket `path`."""
    vmm, metrics = PretendedVmm(), Metrics()
    level = logging.getLogger().level
    handler = LogHandler("vm-1", metrics)
    logging.getLogger("banger-vmm").addHandler(handler)
    api = Api("vm-1", vmm, handler, metrics)  # type: ignore[arg-type]
    loop = asyncio.new_event_loop()
    server = loop.run_until_complete(asyncio.start_unix_server(Server(api.handle).connection, path))
    thread = Thread(target=loop.run_forever)
    thread.start()
    try:
        yield Client(path, vmm)
    finally:

        async def end() -> None:
            server.close()
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(end(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
        metrics.close()
        handler.close()
        logging.getLogger("banger-vmm").removeHandler(handler)
        logging.getLogger().setLevel(level)
