"""One QEMU and what hangs on it: QMP, serial console, vsock. It dies with us, and we end when it does."""

import asyncio
import contextlib
import logging
import socket
from collections import deque
from pathlib import Path

from qemu.qmp import ConnectError, ExecInterruptedError, QMPClient, QMPError

from banger.model.errors import BangerError, CommandFailed, Invalid
from banger.model.firecracker import Vsock
from banger.qemu.accel import PACKAGE, QEMU, prove
from banger.qemu.argv import HostFacts, Wiring, qemu_argv
from banger.qemu.machine import Configuration
from banger.qemu.serial import SerialRelay
from banger.qemu.vsock.service import VsockService
from banger.system.process import find_program, kill_group, spawn

QMP_DEADLINE_S = 20.0
QUIT_DEADLINE_S = 3.0
KEPT_LINES = 50
log = logging.getLogger("banger-vmm")


class Vmm:
    """The VM of this process. `ended` is set when QEMU has gone, with `status` 0 for a guest that powered off."""

    def __init__(self, vm_id: str, accelerators: Path, console: int) -> None:
        self._id = vm_id
        self._accelerators = accelerators
        self._console = console
        self._stack = contextlib.ExitStack()
        self._child: asyncio.subprocess.Process | None = None
        self._qmp: QMPClient | None = None
        self._words: deque[str] = deque(maxlen=KEPT_LINES)
        self._tasks: list[asyncio.Task[None]] = []
        self.ended = asyncio.Event()
        self.status = 0

    async def start(self, config: Configuration) -> None:
        """Run QEMU and return once it runs the guest. Raises with QEMU's last words; then nothing of it is left."""
        verdict = await prove(self._accelerators)
        try:
            await self._start(config, verdict["accelerator"])
        except (BangerError, QMPError, OSError) as error:
            words = self._words[-1] if self._words else str(error)
            await self._clean_up()
            if isinstance(error, Invalid):
                raise
            raise CommandFailed(f"the VM did not start: {words}") from error
        log.info("running on %s (%s)", verdict["accelerator"], verdict["reason"])

    async def _start(self, config: Configuration, accelerator: str) -> None:
        qmp, qmp_end = self._pair()
        serial, serial_end = self._pair()
        vsock_end = self._vsock(config.vsock)
        kernel = config.boot.kernel_image_path if config.boot else ""
        argv = qemu_argv(
            find_program(QEMU, package=PACKAGE),
            self._id,
            config,
            Wiring(qmp_end.fileno(), serial_end.fileno(), vsock_end.fileno() if vsock_end else -1),
            HostFacts(accelerator, tsc_khz(), is_elf(kernel)),
        )
        theirs = [end for end in (qmp_end, serial_end, vsock_end) if end is not None]
        relay = SerialRelay(serial, self._console)
        self._stack.callback(relay.close)
        relay.start()
        # the kernel kills QEMU at our death, however we die (prctl(2), PR_SET_PDEATHSIG)
        self._child = await spawn(
            ["setpriv", "--pdeathsig", "KILL", "--", *argv],
            stderr=asyncio.subprocess.PIPE,
            pass_fds=[end.fileno() for end in theirs],
        )
        for end in theirs:
            end.close()
        reading = asyncio.create_task(self._read_stderr(self._child))
        await self._connect(qmp, self._child)
        self._tasks = [reading, asyncio.create_task(self._watch(self._child, reading))]

    def _pair(self) -> tuple[socket.socket, socket.socket]:
        ours, theirs = socket.socketpair()
        self._stack.callback(theirs.close)
        self._stack.callback(ours.close)
        return ours, theirs

    def _vsock(self, vsock: Vsock | None) -> socket.socket | None:
        if vsock is None:
            return None
        ours, theirs = self._pair()
        try:
            service = VsockService(ours, guest_cid=vsock.guest_cid, uds_path=vsock.uds_path)
        except OSError as error:
            raise Invalid(f"cannot listen on the vsock's uds_path {vsock.uds_path!r}: {error.strerror}") from error
        self._stack.callback(service.close)
        service.start()
        return theirs

    async def _connect(self, qmp: socket.socket, child: asyncio.subprocess.Process) -> None:
        """QMP answers when all devices are made; QEMU that dies before is noticed at once."""
        self._qmp = QMPClient(self._id)
        connecting = asyncio.create_task(self._qmp.connect(qmp))
        dying = asyncio.create_task(child.wait())
        try:
            await asyncio.wait({connecting, dying}, timeout=QMP_DEADLINE_S, return_when=asyncio.FIRST_COMPLETED)
            if not connecting.done() or connecting.exception() is not None:
                raise CommandFailed("QEMU ended or did not answer on QMP")
        finally:
            for task in (connecting, dying):
                task.cancel()
            await asyncio.gather(connecting, dying, return_exceptions=True)

    async def _read_stderr(self, child: asyncio.subprocess.Process) -> None:
        assert child.stderr is not None
        while line := await child.stderr.readline():
            self._words.append(line.decode(errors="replace").strip())
            log.warning("qemu: %s", self._words[-1])

    async def _watch(self, child: asyncio.subprocess.Process, reading: asyncio.Task[None]) -> None:
        status = await child.wait()
        await reading
        self.status = 0 if status == 0 else 1
        log.info("qemu ended with status %d", status)
        self.ended.set()

    async def command(self, name: str, **arguments: object) -> None:
        """Run a QMP command. Raises `CommandFailed`."""
        assert self._qmp is not None
        try:
            async with asyncio.timeout(QMP_DEADLINE_S):
                await self._qmp.execute(name, arguments or None)
        except (QMPError, TimeoutError) as error:
            raise CommandFailed(f"QEMU refused {name}: {error}") from error

    async def ctrl_alt_del(self) -> None:
        keys = [{"type": "qcode", "data": key} for key in ("ctrl", "alt", "delete")]
        await self.command("send-key", keys=keys)

    async def stop(self) -> None:
        """End QEMU: it flushes its disks first if it can. Leaves nothing."""
        if self._child is not None and self._child.returncode is None and self._qmp is not None:
            with contextlib.suppress(QMPError, ExecInterruptedError, ConnectError, TimeoutError):
                async with asyncio.timeout(QUIT_DEADLINE_S):
                    await self._qmp.execute("quit")
                    await self._child.wait()
        await self._clean_up()

    async def _clean_up(self) -> None:
        if self._child is not None:
            await kill_group(self._child)
        if self._qmp is not None:
            with contextlib.suppress(QMPError, EOFError, OSError):
                await self._qmp.disconnect()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._stack.close()
        self._child, self._qmp, self._tasks = None, None, []


def is_elf(path: str) -> bool:
    """Whether the kernel is an uncompressed ELF, which the firmware enters directly."""
    try:
        with Path(path).open("rb") as file:
            return file.read(4) == b"\x7fELF"
    except OSError:
        return False


def tsc_khz() -> int:
    """The host's TSC rate in kHz: as the kernel tells, else from the CPU's name, else its clock; 0: unknown."""
    told = Path("/sys/devices/system/cpu/cpu0/tsc_freq_khz")
    if told.exists():
        return int(told.read_text())
    lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    facts = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    rate = facts.get("model name", "").rpartition("@ ")[2].removesuffix("GHz")
    with contextlib.suppress(ValueError):
        return int(float(rate) * 1e6)
    with contextlib.suppress(ValueError):
        return int(float(facts.get("cpu MHz", "")) * 1e3)
    return 0
