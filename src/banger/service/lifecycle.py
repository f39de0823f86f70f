"""What is done to one VM: make its disks, boot it until it is healthy, power it off, take it away."""

import contextlib
import time
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path
from typing import Any, Literal

import msgspec

from banger.config import Settings
from banger.engine import payload
from banger.engine.api import EngineApi
from banger.engine.capabilities import capabilities_of
from banger.engine.launch import adopt, can_jail, clean_up, end, find_engine, tail
from banger.engine.select import Engine, Needs
from banger.guest.channel import Guest
from banger.guest.protocol import READY_PORT
from banger.guest.ready import ReadyListener
from banger.images.catalog import find_image, part_path
from banger.images.locks import ImageLocks, image_in_use
from banger.jobs.operations import Job
from banger.model.engine import NO_SPACE, Capabilities
from banger.model.errors import (
    BangerError,
    CommandFailed,
    Conflict,
    GuestUnreachable,
    HostRequirement,
    Invalid,
    NotFound,
    Timeout,
)
from banger.model.firecracker import Vm as VmStateDocument
from banger.model.image import Image
from banger.model.machine import Disk, Machine
from banger.model.vm import LIVE, Vm, VmState
from banger.model.volume import Volume
from banger.network.user import user_nic
from banger.paths import Paths
from banger.service.admission import Admission
from banger.service.booting import (
    BOOTS_MAX,
    CALL_S,
    ChooseEngine,
    GuestPanicked,
    configure,
    or_end,
    start_engine,
    start_machine,
    until_ok,
)
from banger.service.disks import Disks, changed_to, check_growth
from banger.service.health import Checks
from banger.service.opencode import Opencode
from banger.store.vms import VmStore
from banger.system.files import remove_tree
from banger.system.watch import process_end

RESUME_S = 10.0
PAUSE_FAULT = "after a pause and resume, new connections to the guest over vsock can hang for ever"
CONSOLE_LINES = 20


class Lifecycle:
    """The steps that operations on VMs are made of. Each step that makes something pushes its undo first."""

    def __init__(
        self,
        paths: Paths,
        settings: Settings,
        vms: VmStore,
        engine: ChooseEngine,
        opencode: Opencode,
        checks: Checks,
        admission: Admission,
        disks: Disks,
    ) -> None:
        self._paths = paths
        self._settings = settings
        self._vms = vms
        self._engine = engine
        self._opencode = opencode
        self._checks = checks
        self._admission = admission
        self._disks = disks
        self._image_locks = ImageLocks()

    def check_room(self) -> None:
        """Raises `HostRequirement` when so little is free on the disk that no machine may begin to run."""
        self._admission.check()

    def check_room_to_run_on(self, vm: Vm) -> None:
        """The same for one that is paused, and more where its engine would not pause it again."""
        self._admission.check(least=0 if _capabilities(vm).stops_when_full else self._admission.floor)

    async def make_disks(self, job: Job, vm: Vm, volume: Volume | None) -> None:
        """Everything that the VM has on disk; the volume, if there is one, becomes its work disk."""
        image = find_image(self._paths, vm.image)
        async with job.stage("choose the engine"):
            engine = await self._engine(vm.wanted_engine, Needs(nat=vm.nat, qcow2=False))
        job.undo("remove the VM's files", lambda: self.remove_files(vm))
        self._paths.vm(vm.id).state.mkdir(parents=True, mode=0o700)
        await self._disks.make_root(job, vm, image, engine)
        self._disks.settle_root(vm)
        if volume is not None:
            await self._disks.take_volume(job, vm, volume)
        elif vm.work_disk_bytes:
            await self._disks.make_work(job, vm, image)

    def check_growth(self, vm: Vm, size: int) -> None:
        """Raises `Conflict`, `HostRequirement` unless the work disk can become so many bytes large."""
        check_growth(vm, size, self._paths.vm(vm.id).work_disk)

    async def enlarge_work(self, job: Job, vm: Vm, size: int) -> Vm:
        """Give the work disk so many bytes; a guest that runs has them at once, another when it runs next."""
        await self._disks.enlarge_work(job, vm, size)
        vm = msgspec.structs.replace(vm, work_disk_bytes=size)
        self._vms.update(vm)
        if vm.state in LIVE:
            async with job.stage("tell the engine", deadline_s=CALL_S):
                path = "/disks/work" if vm.jailed else str(self._paths.vm(vm.id).work_disk)
                await EngineApi(self._paths.vm(vm.id).api_socket).call(*payload.regrow(Disk(id="work", path=path)))
        if vm.state is VmState.RUNNING:
            await self._disks.grow(job, vm)
        return vm

    def settle_disks(self, vm: Vm) -> None:
        """See `Disks.settle`."""
        self._disks.settle(vm)

    async def change_image(self, job: Job, vm: Vm, image: Image) -> Vm:
        """A fresh root disk of that image for a VM that does not run. The old one stays until the new one is there."""
        async with job.stage("choose the engine"):
            engine = await self._engine(vm.wanted_engine, Needs(nat=vm.nat, qcow2=False))
        changed = changed_to(vm, image, self._paths)
        job.undo("remove the new root disk", lambda: self._disks.drop_root(changed))
        await self._disks.make_root(job, changed, image, engine)
        self._vms.update(changed)
        self._disks.settle_root(changed)
        return changed

    async def boot(self, job: Job, vm: Vm, *, wait_opencode: bool = True) -> Vm:
        """Start the engine and return once the agent answers, and opencode where it shall run.

        Raises with the console's last lines and the state of each check.

        When the kernel panics nothing of the person's has run yet, so the machine is booted again, and it is said.
        """
        for again in range(BOOTS_MAX - 1, -1, -1):
            try:
                return await self._boot(job, vm, wait_opencode=wait_opencode)
            except GuestPanicked as error:
                if not again:
                    raise
                job.note(f"{error.message}; booting it again")
                await self.end_engine(vm)
        raise AssertionError("the loop returns or raises")

    async def _boot(self, job: Job, vm: Vm, *, wait_opencode: bool) -> Vm:
        await self._disks.fit(job, vm)
        async with job.stage("engine"):
            needs = Needs(nat=vm.nat, qcow2=self._paths.vm(vm.id).root_overlay.exists())
            engine = await self._engine(vm.wanted_engine, needs)
            vm = _on(engine, vm)
            job.undo("end the engine", lambda: self.end_engine(vm))
            vm, machine = await self._launch(job, engine, vm)
        async with job.stage("configure"):
            api = EngineApi(self._paths.vm(vm.id).api_socket)
            if vm.engine == "firecracker":
                # what runs may be another release than the one that was asked for its version
                vm = msgspec.structs.replace(vm, engine_version=await api.version())
            await configure(api, machine)
        await self._until_healthy(job, vm, api, wait_opencode=wait_opencode)
        await self._disks.detach_root(vm)  # the engine has it open, and it goes with the engine
        vm = msgspec.structs.replace(vm, state=VmState.RUNNING, started_at=time.time(), keep_work_disk="")
        self._vms.update(vm)
        self._disks.booted(vm)
        return vm

    async def _launch(self, job: Job, engine: Engine, vm: Vm) -> tuple[Vm, Machine]:
        """The VM with its process, and the machine as its engine must be told it."""
        paths = self._paths.vm(vm.id)
        image = find_image(self._paths, vm.image)
        base = part_path(self._paths, image, "root")
        with image_in_use(base, image.name) as held:
            machine = self._machine(vm, image, await self._disks.attach_root(job, vm, image))
            if vm.jailed:
                self._image_locks.acquire(vm.id, base, vm.image)
            process, machine = await start_engine(engine, machine, paths, self._paths.jail(vm.id), (held,))
        vm = msgspec.structs.replace(vm, process=process)
        self._vms.update(vm)
        return vm, machine

    def _machine(self, vm: Vm, image: Image, root: Path) -> Machine:
        paths = self._paths
        return Machine(
            id=vm.id,
            hostname=vm.name,
            vcpu=vm.vcpu,
            memory_mib=vm.memory_mib,
            kernel=str(part_path(paths, image, "kernel")),
            initramfs=str(part_path(paths, image, "initramfs")),
            boot_args=image.boot_args,
            disks=self._disks.of(vm, root),
            nics=(user_nic(vm.id, nat=vm.nat),) if vm.guest_ip else (),
            vsock_socket=str(paths.vm(vm.id).vsock_socket),
            backing_files=(str(part_path(paths, image, "root")),),
        )

    async def _until_healthy(self, job: Job, vm: Vm, api: EngineApi, *, wait_opencode: bool) -> None:
        paths = self._paths.vm(vm.id)
        begun = time.monotonic()
        try:
            async with ReadyListener(paths.guest_listener(READY_PORT)) as ready:
                async with job.stage("start"):
                    await start_machine(api)
                async with job.stage("boot to healthy", deadline_s=self._settings.boot_timeout_s):
                    await self._or_end(vm, until_ok(paths.vsock_socket, ready))
            await self._or_end(vm, self._disks.grow_or_tell(job, vm))
            if vm.opencode:
                await self._or_end(vm, self._opencode.bring_up(job, vm, wait=wait_opencode))
        except (Timeout, GuestUnreachable) as error:
            raise await self._unhealthy(vm, error, time.monotonic() - begun) from error

    async def _unhealthy(self, vm: Vm, error: Timeout | GuestUnreachable, seconds: float) -> BangerError:
        """The error with all that helps to find its cause, as nothing else of a failed create will be left."""
        paths = self._paths.vm(vm.id)
        console = tail(paths.console_log)
        checks = [
            f"{check.name}: {'ok' if check.ok else 'failed'}: {check.detail}" for check in await self._checks.live(vm)
        ]
        return type(error)(
            f"{vm.name} did not become healthy within {seconds:.0f} s: {error.message}",
            hint=error.hint or "the console's last lines are below; a slow host may need a larger boot_timeout_s",
            details={
                **error.details,
                "checks": checks,
                "console": console.splitlines()[-CONSOLE_LINES:],
                "console_tail": console,
                "engine": tail(paths.engine_log).splitlines()[-5:],
            },
        )

    async def _or_end(self, vm: Vm, work: Coroutine[Any, Any, None]) -> None:
        assert vm.process is not None
        await or_end(vm.process, self._paths.vm(vm.id).console_log, work)

    async def power_off(self, job: Job, vm: Vm, *, force: bool) -> None:
        """Ask the guest to power off, and end its engine when it does not in time."""
        assert vm.process is not None
        if not force:
            try:
                async with job.stage("shut the guest down", deadline_s=self._settings.stop_timeout_s):
                    if vm.state is VmState.PAUSED:
                        await self._set_state(vm, "Resumed")
                    mode: Literal["poweroff", "reboot"] = "poweroff" if _capabilities(vm).power_off else "reboot"
                    await Guest(self._paths.vm(vm.id).vsock_socket).shutdown(mode, timeout=CALL_S)
                    await process_end(vm.process.pid, vm.process.start_ticks)
            except (Timeout, GuestUnreachable) as error:
                job.note(f"the guest did not power off by itself: {error.message}")
        async with job.stage("end the engine"):
            await self.end_engine(vm)

    async def end_engine(self, vm: Vm) -> None:
        """End whatever engine serves this VM, also one that a dead daemon started and did not record."""
        stored = self._vms.get(vm.id)
        paths, jail = self._paths.vm(vm.id), self._paths.jail(vm.id)
        process = (stored.process if stored else None) or vm.process or find_engine(vm.id, paths, jail)
        if process is not None:
            await end(process, polite=not vm.jailed)
        await clean_up(paths, jail)
        await self._disks.detach_root(vm)
        self._image_locks.release(vm.id)
        if stored is not None and stored.process is not None:
            self._vms.update(msgspec.structs.replace(stored, process=None, started_at=None))

    async def pause(self, job: Job, vm: Vm, problem: str = "") -> Vm:
        """Stop the guest's processors; its memory is kept. `problem`: why, where nobody asked for it."""
        async with job.stage("pause"):
            await self._set_state(vm, "Paused")
        if _capabilities(vm).vsock_pause_hang:
            job.note(f"{vm.engine} {vm.engine_version} has a fault: {PAUSE_FAULT}")
        return self._became(vm, VmState.PAUSED, problem)

    async def resume(self, job: Job, vm: Vm) -> Vm:
        """Let the guest run on, and see that it can be reached. Raises `GuestUnreachable` when it cannot; it runs.

        Raises `HostRequirement` when it is paused again, as the disk is full.
        """
        async with job.stage("resume"):
            await self._set_state(vm, "Resumed")
            vm = self._became(vm, VmState.RUNNING)
        async with job.stage("reach the guest", deadline_s=RESUME_S + 1):
            try:
                await Guest(self._paths.vm(vm.id).vsock_socket).health(timeout=RESUME_S)
            except (GuestUnreachable, Timeout) as error:
                if await self._is_paused(vm):
                    raise self._paused_again(vm) from error
                raise _unreachable_since_pause(vm, error) from error
        await self._disks.grow_or_tell(job, vm)
        return vm

    @contextlib.asynccontextmanager
    async def standing_still(self, vm: Vm) -> AsyncIterator[None]:
        """A running guest's processors stand still within the block, its disk written out; nobody is told."""
        await self._set_state(vm, "Paused")
        try:
            yield
        finally:
            await self._set_state(vm, "Resumed")

    async def _is_paused(self, vm: Vm) -> bool:
        try:
            return (await EngineApi(self._paths.vm(vm.id).api_socket).info()).state == "Paused"
        except BangerError:
            return False

    async def _set_state(self, vm: Vm, state: Literal["Paused", "Resumed"]) -> None:
        try:
            await EngineApi(self._paths.vm(vm.id).api_socket).call("PATCH", "/vm", VmStateDocument(state=state))
        except CommandFailed as error:
            if NO_SPACE not in error.message:
                raise
            raise self._paused_again(vm) from error

    def _paused_again(self, vm: Vm) -> HostRequirement:
        problem = self._admission.full()
        self._became(vm, VmState.PAUSED, problem)
        return HostRequirement(
            f"{vm.name} was resumed and paused again at once: {problem}",
            hint="`banger capacity` shows what takes the room; "
            f"`banger vm stop --force {vm.name}` gives up what the guest could not write",
        )

    def _became(self, vm: Vm, state: VmState, problem: str = "") -> Vm:
        vm = msgspec.structs.replace(vm, state=state, problem=problem)
        self._vms.update(vm)
        return vm

    def engine_gone(self, vm_id: str) -> None:
        """Let go of what was held for an engine that has ended by itself."""
        self._image_locks.release(vm_id)

    async def remove_files(self, vm: Vm) -> None:
        await clean_up(self._paths.vm(vm.id), self._paths.jail(vm.id))
        await self._disks.detach_root(vm)
        await remove_tree(self._paths.vm(vm.id).state)

    async def adopt(self, vm: Vm) -> bool:
        """Whether this VM's recorded engine still runs and serves it."""
        if vm.process is None or not await adopt(vm.process, vm.id, self._paths.vm(vm.id)):
            return False
        if vm.jailed:
            # its root disk may need the image no more, and a registered one's files may be gone
            with contextlib.suppress(NotFound, Invalid, Conflict):
                base = part_path(self._paths, find_image(self._paths, vm.image), "root")
                self._image_locks.acquire(vm.id, base, vm.image)
        return True


def _on(engine: Engine, vm: Vm) -> Vm:
    """The VM with what is to be told of its engine."""
    return msgspec.structs.replace(
        vm,
        engine=engine.name,
        engine_version=engine.version,
        engine_reason=engine.reason,
        jailed=can_jail(engine),
        accelerator=engine.accelerator.accelerator,
        accelerator_reason=engine.accelerator.reason,
        guest_ip=user_nic(vm.id, nat=vm.nat).address if engine.capabilities.user_network else "",
        problem="",
    )


def _capabilities(vm: Vm) -> Capabilities:
    return capabilities_of(vm.engine, vm.engine_version)


def _unreachable_since_pause(vm: Vm, error: BangerError) -> GuestUnreachable:
    if _capabilities(vm).vsock_pause_hang:
        return GuestUnreachable(
            f"{vm.name} runs again and cannot be reached: {vm.engine} {vm.engine_version} has a fault: {PAUSE_FAULT}",
            hint=f"`banger vm restart --force {vm.name}` helps; `banger engine list` shows sound releases",
        )
    return GuestUnreachable(
        f"{vm.name} runs again and its agent does not answer: {error.message}", hint=f"banger vm health {vm.name}"
    )
