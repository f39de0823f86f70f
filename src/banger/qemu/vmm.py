"""One QEMU and what hangs on it: monitor, serial console, vsock. It dies with us, and we end when it does."""

import asyncio
import contextlib
import logging
import os
import socket
import time
from collections import deque
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import msgspec
from qemu.qmp import QMPError

from banger.model.errors import BangerError, CommandFailed, Invalid
from banger.model.firecracker import PartialDrive, Vsock
from banger.qemu.argv import BOOT_DONE, HostFacts, Wiring, qemu_argv, root_first
from banger.qemu.confine import confined
from banger.qemu.handles import Handles, is_elf, open_drive, open_handles
from banger.qemu.host import cpu_seconds, net_metrics, tsc_khz
from banger.qemu.live import Live
from banger.qemu.machine import Configuration
from banger.qemu.outputs import open_output
from banger.qemu.qmp import DEADLINE_S, Qmp
from banger.qemu.serial import SerialRelay, Typing
from banger.system.process import find_program, kill_group, spawn

if TYPE_CHECKING:
    from banger.qemu.vsock.service import VsockService

KEPT_LINES = 20
LOGGED_LINES = 500
LINE_MAX = 4096
log = logging.getLogger("banger-vmm")


class Options(NamedTuple):
    """What banger-vmm's command line decides; console and keyboard are descriptors."""

    vm_id: str
    accelerators: Path
    console: int = 1
    keyboard: int = 0
    backing_files: frozenset[str] = frozenset()
    boot_timer: bool = False


class Vmm:
    """Started once. `ended` is set when QEMU has ended, with `status` 0 for a guest that powered off."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._config = Configuration()
        self._stack = contextlib.ExitStack()
        self._child: asyncio.subprocess.Process | None = None
        self._words: deque[str] = deque(maxlen=KEPT_LINES)
        self._tasks: list[asyncio.Task[None]] = []
        self._timing: asyncio.Task[None] | None = None
        self._relay: SerialRelay | None = None
        self._vsock: VsockService | None = None
        self.qmp, self.live = self._monitor()
        self.ended = asyncio.Event()
        self.status = 0

    def _monitor(self) -> tuple[Qmp, Live]:
        qmp = Qmp(self._options.vm_id)
        return qmp, Live(qmp)

    @property
    def running(self) -> bool:
        """Whether the guest's processors run."""
        return self.qmp.running

    async def start(self, config: Configuration) -> None:
        """Run QEMU and return once it runs the guest. Raises with QEMU's last words; then nothing of it is left."""
        # what only a start needs is loaded here: the API answers 40 ms sooner
        from banger.qemu.accel import PACKAGE, QEMU, prove

        self._config = config
        program = find_program(QEMU, package=PACKAGE)
        verdict = await prove(self._options.accelerators)
        try:
            handles = open_handles(config, self._options.backing_files)
            with contextlib.closing(handles):
                await self._start(config, program, verdict["accelerator"], handles)
        except (BangerError, QMPError, OSError) as error:
            words = self._words[-1] if self._words else str(error)
            await self._clean_up()
            if isinstance(error, Invalid):
                raise
            if config.machine.huge_pages == "2M":
                words += " (2M huge pages are asked for; /proc/sys/vm/nr_hugepages says how many there are)"
            raise CommandFailed(f"the VM did not start: {words}") from error
        log.info("running on %s (%s)", verdict["accelerator"], verdict["reason"])

    async def _start(self, config: Configuration, program: str, accelerator: str, handles: Handles) -> None:
        qmp, qmp_end = self._pair()
        serial, serial_end = self._pair()
        theirs = [qmp_end, serial_end]
        wiring = Wiring(qmp_end.fileno(), serial_end.fileno())
        if config.vsock is not None:
            theirs.append(self._listen(config.vsock))
            wiring = wiring._replace(vsock=theirs[-1].fileno())
        if self._options.boot_timer:
            timer, timer_end = self._pair()
            theirs.append(timer_end)
            wiring = wiring._replace(boot_timer=timer_end.fileno())
            self._timing = asyncio.create_task(self._time_boot(timer))
            self._stack.callback(self._timing.cancel)
        facts = HostFacts(accelerator, tsc_khz(), is_elf(handles.kernel))
        argv = qemu_argv(program, self._options.vm_id, config, handles, wiring, facts)
        self._open_console(config, serial)
        self._child = await spawn(
            confined(argv, accelerator),
            stderr=asyncio.subprocess.PIPE,
            pass_fds=[*(end.fileno() for end in theirs), *handles.all()],
        )
        for end in theirs:
            end.close()
        assert self._child.stderr is not None
        reading = asyncio.create_task(self._read_words(self._child.stderr, handles.names()))
        self._tasks.append(reading)
        await self._connect(qmp, self._child, reading)
        self._stack.callback(self.live.close)
        await self.live.begin(root_first(config), handles.keep_drives(), config.balloon)
        if config.balloon is not None and config.balloon.amount_mib:
            await self.live.inflate(config.machine.mem_size_mib, config.balloon.amount_mib)
        await self.resume()
        self._tasks.append(asyncio.create_task(self._watch(self._child, reading)))

    def _pair(self) -> tuple[socket.socket, socket.socket]:
        ours, theirs = socket.socketpair()
        self._stack.callback(theirs.close)
        self._stack.callback(ours.close)
        return ours, theirs

    def _listen(self, vsock: Vsock) -> socket.socket:
        from banger.qemu.vsock.service import VsockService

        ours, theirs = self._pair()
        try:
            self._vsock = VsockService(ours, guest_cid=vsock.guest_cid, uds_path=vsock.uds_path)
        except OSError as error:
            raise Invalid(f"cannot listen on the vsock's uds_path {vsock.uds_path!r}: {error.strerror}") from error
        self._stack.callback(self._vsock.close)
        self._vsock.start()
        return theirs

    def _open_console(self, config: Configuration, serial: socket.socket) -> None:
        output, limiter = self._options.console, config.serial.rate_limiter if config.serial else None
        if config.serial is not None and config.serial.serial_out_path is not None:
            output = open_output(config.serial.serial_out_path)
            self._stack.callback(os.close, output)
        self._relay = SerialRelay(serial, output, limiter)
        self._stack.callback(self._relay.close)
        self._relay.start()
        typing = Typing(self._options.keyboard, self._relay)
        self._stack.callback(typing.close)
        typing.start()

    async def _connect(
        self, sock: socket.socket, child: asyncio.subprocess.Process, reading: asyncio.Task[None]
    ) -> None:
        """The monitor answers when all devices are made; QEMU that dies before is noticed at once."""
        connecting = asyncio.create_task(self.qmp.connect(sock))
        dying = asyncio.create_task(child.wait())
        try:
            await asyncio.wait({connecting, dying}, timeout=DEADLINE_S, return_when=asyncio.FIRST_COMPLETED)
            if not connecting.done() or connecting.exception() is not None:
                await asyncio.wait({reading}, timeout=1)
                raise CommandFailed("QEMU ended or did not answer on QMP")
        finally:
            for task in (connecting, dying):
                task.cancel()
            await asyncio.gather(connecting, dying, return_exceptions=True)

    async def _read_words(self, stream: asyncio.StreamReader, names: Mapping[str, str]) -> None:
        """QEMU's complaints, with the names that the person gave for the descriptors that QEMU got.

        A guest can make QEMU complain: lines are cut, and after the first ones no more are logged.
        """
        said = 0
        async for line in _lines(stream):
            words = line.decode(errors="replace").strip()
            for ours, theirs in names.items():
                words = words.replace(ours, theirs)
            self._words.append(words)
            said += 1
            if said <= LOGGED_LINES:
                log.warning("qemu: %s", words)
        if said > LOGGED_LINES:
            log.warning("qemu: %d more lines were not logged", said - LOGGED_LINES)

    async def _watch(self, child: asyncio.subprocess.Process, reading: asyncio.Task[None]) -> None:
        status = await child.wait()
        await reading
        self.status = 0 if status == 0 else 1
        log.info("qemu ended with status %d", status)
        self.ended.set()

    async def _time_boot(self, timer: socket.socket) -> None:
        """Firecracker's boot timer: say how long it took until the guest wrote the magic byte."""
        timer.setblocking(False)
        began, loop = time.monotonic(), asyncio.get_running_loop()
        while data := await loop.sock_recv(timer, 1):
            if data[0] == BOOT_DONE:
                wall = int((time.monotonic() - began) * 1e6)
                cpu = int(cpu_seconds(self._child.pid) * 1e6) if self._child else 0
                log.info("Guest-boot-time = %6d us %d ms, %6d CPU us %d CPU ms", wall, wall // 1000, cpu, cpu // 1000)
                return

    async def patch_drive(self, change: PartialDrive) -> None:
        """Another file, the same one after it has grown, another limit. Raises `Invalid`, `CommandFailed`."""
        drive = self._config.drives.get(change.drive_id)
        if drive is None:
            raise Invalid(f"Unable to patch the block device: there is no drive {change.drive_id}")
        if change.path_on_host is not None:
            drive = msgspec.structs.replace(drive, path_on_host=change.path_on_host)
            await self.live.reopen(drive, open_drive(drive, self._options.backing_files))
            self._config.drives[drive.drive_id] = drive
        if change.rate_limiter is not None:
            await self.live.limit(drive.drive_id, change.rate_limiter)
            self._config.drives[drive.drive_id] = msgspec.structs.replace(drive, rate_limiter=change.rate_limiter)

    async def pause(self) -> None:
        await self.qmp.execute("stop")

    async def resume(self) -> None:
        """Raises `CommandFailed`, also when a disk that was full still is."""
        await self.qmp.resume()

    async def ctrl_alt_del(self) -> None:
        keys = [{"type": "qcode", "data": key} for key in ("ctrl", "alt", "delete")]
        await self.qmp.execute("send-key", keys=keys)

    async def measured(self) -> dict[str, dict[str, int]]:
        """What QEMU, the console and vsock have counted, in Firecracker's groups; empty without a running QEMU."""
        if self._child is None or self._child.returncode is not None:
            return {}
        groups = await self.live.block_metrics()
        groups |= net_metrics(self._config.nics.values())
        if self._relay is not None:
            uart = {"write_count": self._relay.written, "rate_limiter_dropped_bytes": self._relay.dropped}
            groups["uart"] = uart
        if self._vsock is not None:
            stats = self._vsock.stats()
            groups["vsock"] = {f"{name}_count": stats[name] for name in _VSOCK} | {
                "conns_added": stats["connections_total"],
                "conns_removed": stats["connections_total"] - stats["connections_open"],
            }
        return groups

    async def stop(self) -> None:
        """End QEMU: it flushes its disks first if it can. Leaves nothing."""
        if self._child is not None and self._child.returncode is None:
            await self.qmp.quit()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(3):
                    await self._child.wait()
        await self._clean_up()

    async def _clean_up(self) -> None:
        if self._child is not None:
            await kill_group(self._child)
        await self.qmp.close()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._stack.close()
        self._child, self._tasks = None, []
        self.qmp, self.live = self._monitor()


async def _lines(stream: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """Lines of at most LINE_MAX bytes; a longer one comes in pieces."""
    rest = b""
    while chunk := await stream.read(LINE_MAX):
        *lines, rest = (rest + chunk).split(b"\n")
        if len(rest) >= LINE_MAX:
            lines, rest = [*lines, rest], b""
        for line in lines:
            yield line[:LINE_MAX]
    if rest:
        yield rest


_VSOCK = ("rx_bytes", "tx_bytes", "rx_packets", "tx_packets")
