"""What is done to one VM: make its disk, boot it until it is healthy, power it off, take it away."""

import asyncio
import contextlib
import shutil
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec

from banger.config import Settings
from banger.engine import payload
from banger.engine.api import EngineApi
from banger.engine.launch import adopt, end, launch, tail
from banger.engine.select import Engine
from banger.guest.channel import Guest
from banger.guest.protocol import READY_PORT
from banger.guest.ready import ReadyListener
from banger.images.catalog import find_image
from banger.jobs.operations import Job
from banger.model.errors import BangerError, GuestUnreachable, Timeout
from banger.model.machine import Disk, Machine
from banger.model.vm import EngineProcess, Vm, VmState
from banger.network.user import user_nic
from banger.paths import Paths
from banger.storage.overlays import create_root_overlay
from banger.store.vms import VmStore
from banger.system.host import boot_id as host_boot_id
from banger.system.host import command_lines, start_ticks
from banger.system.watch import process_end

ASK_AGAIN_S = 2.0
CALL_S = 10.0
CONSOLE_LINES = 20
BOOTS_MAX = 3
PANIC = "Kernel panic - not syncing"


class GuestPanicked(GuestUnreachable):
    """The guest's kernel gave up before the agent answered."""


class Lifecycle:
    """The steps that operations on VMs are made of. Each step that makes something pushes its undo first."""

    def __init__(self, paths: Paths, settings: Settings, vms: VmStore, engine: Callable[[], Awaitable[Engine]]) -> None:
        self._paths = paths
        self._settings = settings
        self._vms = vms
        self._engine = engine

    async def make_disks(self, job: Job, vm: Vm) -> None:
        """The root overlay, O(1) in the image's size."""
        paths = self._paths.vm(vm.id)
        image = self._paths.image(vm.image)
        async with job.stage("root disk"):
            find_image(self._paths, vm.image)
            job.undo("remove the VM's files", lambda: self.remove_files(vm))
            paths.state.mkdir(parents=True, mode=0o700)
            await create_root_overlay(image.root, paths.root_overlay, None)

    async def boot(self, job: Job, vm: Vm) -> Vm:
        """Start the engine and return once the agent answers. Raises with the console's last lines.

        QEMU's multi-threaded emulation now and then loses a race when a booting kernel patches its own code, and
        the kernel panics. Nothing of the person's has run by then, so the machine is booted again, and it is said.
        """
        for again in range(BOOTS_MAX - 1, -1, -1):
            try:
                return await self._boot(job, vm)
            except GuestPanicked as error:
                if not again:
                    raise
                job.note(f"{error.message}; booting it again")
                await self.end_engine(vm)
        raise AssertionError("the loop returns or raises")

    async def _boot(self, job: Job, vm: Vm) -> Vm:
        async with job.stage("engine"):
            engine = await self._engine()
            vm = msgspec.structs.replace(
                vm,
                engine=engine.name,
                accelerator=engine.accelerator.accelerator,
                accelerator_reason=engine.accelerator.reason,
                problem="",
            )
            job.undo("end the engine", lambda: self.end_engine(vm))
            vm = await self._launch(engine, vm)
        async with job.stage("configure"):
            api = EngineApi(self._paths.vm(vm.id).api_socket)
            for method, path, body in payload.configuration(self._machine(vm)):
                await api.call(method, path, body)
        await self._until_healthy(job, vm, api)
        vm = msgspec.structs.replace(vm, state=VmState.RUNNING, started_at=time.time())
        self._vms.update(vm)
        return vm

    async def _launch(self, engine: Engine, vm: Vm) -> Vm:
        paths = self._paths.vm(vm.id)
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(paths.runtime)
        paths.runtime.mkdir(parents=True, mode=0o700)
        _keep_previous(paths.console_log)
        base = str(self._paths.image(vm.image).root)
        process = await launch(engine.program, vm.id, paths, "--backing-file", base)
        vm = msgspec.structs.replace(vm, process=process)
        self._vms.update(vm)
        return vm

    def _machine(self, vm: Vm) -> Machine:
        paths = self._paths.vm(vm.id)
        image = self._paths.image(vm.image)
        return Machine(
            id=vm.id,
            hostname=vm.name,
            vcpu=vm.vcpu,
            memory_mib=vm.memory_mib,
            kernel=str(image.kernel),
            initramfs=str(image.initramfs),
            boot_args=find_image(self._paths, vm.image).boot_args,
            disks=(Disk(id="root", path=str(paths.root_overlay), root=True),),
            nics=(user_nic(vm.id, nat=vm.nat),),
            vsock_socket=str(paths.vsock_socket),
        )

    async def _until_healthy(self, job: Job, vm: Vm, api: EngineApi) -> None:
        assert vm.process is not None
        paths = self._paths.vm(vm.id)
        method, path, body = payload.START
        begun = time.monotonic()
        try:
            async with ReadyListener(paths.guest_listener(READY_PORT)) as ready:
                async with job.stage("start"):
                    await api.call(method, path, body, timeout=30.0)
                async with job.stage("boot to healthy", deadline_s=self._settings.boot_timeout_s):
                    await self._agent_or_end(vm, vm.process, ready)
        except (Timeout, GuestUnreachable) as error:
            console = tail(paths.console_log).splitlines()[-CONSOLE_LINES:]
            raise type(error)(
                f"{vm.name} did not become healthy within {time.monotonic() - begun:.0f} s: {error.message}",
                hint="the console's last lines are below; a slow host may need a larger boot_timeout_s",
                details={"console": console, "engine": tail(paths.engine_log).splitlines()[-5:]},
            ) from error

    async def _agent_or_end(self, vm: Vm, process: EngineProcess, ready: ReadyListener) -> None:
        """Return when /healthz says ok; raise when the engine ends first."""
        healthy = asyncio.ensure_future(self._healthy(vm, ready))
        ended = asyncio.ensure_future(process_end(process.pid, process.start_ticks))
        try:
            await asyncio.wait({healthy, ended}, return_when=asyncio.FIRST_COMPLETED)
            if not healthy.done():
                if PANIC in tail(self._paths.vm(vm.id).console_log):
                    raise GuestPanicked("the guest's kernel panicked while it booted")
                raise GuestUnreachable("the machine powered off or its engine ended before the agent answered")
            healthy.result()
        finally:
            for task in (healthy, ended):
                task.cancel()
            await asyncio.gather(healthy, ended, return_exceptions=True)

    async def _healthy(self, vm: Vm, ready: ReadyListener) -> None:
        guest = Guest(self._paths.vm(vm.id).vsock_socket)
        while True:
            # the agent dials in when it listens; asking now and then covers an agent that cannot
            with contextlib.suppress(GuestUnreachable):
                await ready.wait(timeout=ASK_AGAIN_S)
            try:
                if (await guest.health(timeout=CALL_S)).status == "ok":
                    return
            except BangerError:
                await asyncio.sleep(0.05)

    async def power_off(self, job: Job, vm: Vm, *, force: bool) -> None:
        """Ask the guest to power off, and end its engine when it does not in time."""
        assert vm.process is not None
        if not force:
            try:
                async with job.stage("shut the guest down", deadline_s=self._settings.stop_timeout_s):
                    await Guest(self._paths.vm(vm.id).vsock_socket).shutdown("poweroff", timeout=CALL_S)
                    await process_end(vm.process.pid, vm.process.start_ticks)
            except (Timeout, GuestUnreachable) as error:
                job.note(f"the guest did not power off by itself: {error.message}")
        async with job.stage("end the engine"):
            await self.end_engine(vm)

    async def end_engine(self, vm: Vm) -> None:
        """End whatever engine serves this VM, also one that a dead daemon started and did not record."""
        stored = self._vms.get(vm.id)
        process = (stored.process if stored else None) or vm.process or self._find_engine(vm)
        if process is not None:
            await end(process)
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(self._paths.vm(vm.id).runtime)
        if stored is not None and stored.process is not None:
            self._vms.update(msgspec.structs.replace(stored, process=None, started_at=None))

    def _find_engine(self, vm: Vm) -> EngineProcess | None:
        socket = str(self._paths.vm(vm.id).api_socket)
        for pid, argv in command_lines().items():
            if socket in argv and vm.id in argv and (ticks := start_ticks(pid)) is not None:
                return EngineProcess(pid=pid, start_ticks=ticks, boot_id=host_boot_id())
        return None

    async def remove_files(self, vm: Vm) -> None:
        paths = self._paths.vm(vm.id)
        for directory in (paths.runtime, paths.state):
            with contextlib.suppress(FileNotFoundError):
                await asyncio.to_thread(shutil.rmtree, directory)

    async def adopt(self, vm: Vm) -> bool:
        """Whether this VM's recorded engine still runs and serves it."""
        return vm.process is not None and await adopt(vm.process, vm.id, self._paths.vm(vm.id))


def _keep_previous(console: Path) -> None:
    """A fresh console log for each start; the one before is kept."""
    with contextlib.suppress(FileNotFoundError):
        console.replace(console.with_suffix(".previous.log"))
