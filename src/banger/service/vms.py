"""VMs: what can be asked of them. A method decodes, begins an operation, and returns."""

import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from banger.engine.installed import find_engines
from banger.engine.launch import tail_bytes
from banger.engine.select import Accelerator, Engine, Needs, choose, prove_accelerator
from banger.guest.channel import ExecStream as ExecStream
from banger.guest.channel import Guest
from banger.images.catalog import find_image
from banger.jobs.operations import Job, Operations
from banger.model.documents import VmDocument, VolumeDocument
from banger.model.errors import Conflict, Invalid
from banger.model.guest import ExecRequest
from banger.model.image import Image
from banger.model.names import make_up_name, new_id
from banger.model.operation import Operation
from banger.model.sizes import MIB
from banger.model.vm import (
    LIVE,
    OPENCODE_MEMORY_MIB,
    OpencodeAccess,
    Vm,
    VmChange,
    VmHealth,
    VmSpec,
    VmState,
    WantedEngine,
)
from banger.model.volume import Volume
from banger.paths import Paths
from banger.service.disks import no_work_disk, root_size, work_size
from banger.service.health import Monitor
from banger.service.lifecycle import Lifecycle
from banger.service.logs import LogFollowers
from banger.service.opencode import Opencode
from banger.service.volumes import describe, keep_work_disk, volume_for, volume_target
from banger.storage.volumes import check_movable, find_volume
from banger.storage.work_disks import disk_size
from banger.store.vms import VmStore
from banger.system.files import allocated_bytes
from banger.system.host import memory_total_bytes

LOG_BYTES_MAX = 4 * MIB


class EngineChoice:
    """Chooses engines. The accelerator is proven once for each life of the daemon, at the first need.

    `preferred` is the bundle's engine, for VMs that ask for none.
    """

    def __init__(self, paths: Paths, preferred: WantedEngine = "auto") -> None:
        self._paths = paths
        self._preferred: WantedEngine = preferred
        self._accelerator: Accelerator | None = None

    async def accelerator(self) -> Accelerator:
        """Raises `CommandFailed`, `HostRequirement`."""
        if self._accelerator is None:
            self._accelerator = await prove_accelerator()
        return self._accelerator

    async def __call__(self, wanted: WantedEngine, needs: Needs) -> Engine:
        """Raises `HostRequirement`, `Unsupported`, `CommandFailed`."""
        accelerator = await self.accelerator()
        engines = await find_engines(self._paths, accelerator)
        if wanted == "auto" and self._preferred != "auto":
            engine = choose(engines, accelerator, self._preferred, needs)
            return msgspec.structs.replace(engine, reason="the bundle names it")
        return choose(engines, accelerator, wanted, needs)


class VmService:
    """Everything that the API offers of VMs."""

    def __init__(
        self,
        paths: Paths,
        vms: VmStore,
        operations: Operations,
        lifecycle: Lifecycle,
        monitor: Monitor,
        opencode: Opencode,
    ) -> None:
        self._paths = paths
        self._vms = vms
        self._operations = operations
        self._lifecycle = lifecycle
        self._monitor = monitor
        self._opencode = opencode
        self._followers = LogFollowers()

    def list(self) -> list[VmDocument]:
        return [self.document(vm) for vm in self._vms.all()]

    def show(self, reference: str) -> VmDocument:
        return self.document(self._vms.find(reference))

    async def health(self, reference: str, *, wait_s: float = 0.0) -> VmHealth:
        """Check now; with `wait_s` again and again until nothing is still on its way."""
        vm = self._vms.find(reference)
        return await self._monitor.settle(vm.id, wait_s) or await self._monitor.check(vm)

    def opencode(self, reference: str) -> OpencodeAccess:
        """How to log in to the guest's opencode server. Raises `Conflict` when there is none."""
        return self._opencode.access(self._vms.find(reference))

    def logs(self, reference: str, source: str, limit: int) -> bytes:
        """The last `limit` bytes of the `console` or `engine` log."""
        return tail_bytes(self._log(reference, source), min(limit, LOG_BYTES_MAX))

    def follow_logs(self, reference: str, source: str, seen: bytes | None, limit: int) -> AsyncIterator[bytes]:
        """See `LogFollowers.follow`."""
        return self._followers.follow(self._log(reference, source), seen, min(limit, LOG_BYTES_MAX))

    def end_streams(self) -> None:
        """Let everybody who follows a log know that the daemon ends."""
        self._followers.close()

    def _log(self, reference: str, source: str) -> Path:
        paths = self._paths.vm(self._vms.find(reference).id)
        logs = {"console": paths.console_log, "engine": paths.engine_log}
        if source not in logs:
            raise Invalid(f"there is no log {source!r}", hint="choose console or engine")
        return logs[source]

    async def exec(self, reference: str, request: ExecRequest) -> ExecStream:
        """Run a command in a running guest. Raises `Conflict` when the VM is not running."""
        vm = self._vms.find(reference)
        if vm.state is not VmState.RUNNING:
            raise _not_running(vm)
        return await Guest(self._paths.vm(vm.id).vsock_socket).exec(request)

    def create(self, spec: VmSpec) -> Operation:
        """Begin `vm.create`.

        Raises `Invalid`, `NotFound` (image), `Conflict` (name), `HostRequirement` (a full disk); nothing is made then.
        """
        spec.check(host_memory_mib=memory_total_bytes() // MIB)
        image = find_image(self._paths, spec.image)
        volume = self._volume(spec.volume)
        vm = self._new(spec, image, volume)
        self._operations.check_free(_target(vm))
        self._lifecycle.check_room()
        self._vms.add(vm)

        async def work(job: Job) -> VmDocument:
            job.undo("forget the VM", lambda: self._forget(vm))
            await self._lifecycle.make_disks(job, vm, volume)
            return await self._boot(job, vm, wait_opencode=spec.wait_opencode)

        also = (volume_target(volume.name),) if volume else ()
        return self._operations.begin("vm.create", _target(vm), work, also=also)

    def _volume(self, name: str | None) -> Volume | None:
        """The volume that shall become a work disk. Raises `NotFound`, `Invalid`, `Busy`, `HostRequirement`."""
        if name is None:
            return None
        self._operations.check_free(volume_target(name))
        volume = find_volume(self._paths, name)
        check_movable(self._paths, self._paths.volume(name).disk)
        return volume

    def _new(self, spec: VmSpec, image: Image, volume: Volume | None) -> Vm:
        check_memory(image, spec.memory_mib, f"choose --memory {image.memory_mib}M or more")
        if volume is not None and not image.init_version:
            raise no_work_disk(image, "leave --volume out")
        opencode = image.has_opencode and spec.opencode
        if opencode and spec.memory_mib < OPENCODE_MEMORY_MIB:
            raise _too_little_memory(image, spec.memory_mib, ", or --no-opencode")
        return Vm(
            id=new_id(),
            name=spec.name or self._free_name(),
            state=VmState.CREATING,
            image=spec.image,
            vcpu=spec.vcpu,
            memory_mib=spec.memory_mib,
            nat=spec.nat,
            engine="",
            wanted_engine=spec.engine,
            accelerator="",
            accelerator_reason="",
            guest_ip="",
            disk_bytes=root_size(spec, image),
            created_at=time.time(),
            opencode=opencode,
            work_disk_bytes=disk_size(self._paths.volume(volume.name).disk) if volume else work_size(spec, image),
            # until it runs: a create that fails, or that the daemon does not survive, gives the volume back
            keep_work_disk=volume.name if volume else "",
        )

    def _free_name(self) -> str:
        taken = {vm.name for vm in self._vms.all()}
        name = make_up_name()
        while name in taken:
            name = f"{make_up_name()}-{new_id()[:3]}"
        return name

    async def _forget(self, vm: Vm) -> None:
        self._vms.remove(vm.id)

    async def _boot(self, job: Job, vm: Vm, *, wait_opencode: bool) -> VmDocument:
        running = await self._lifecycle.boot(job, vm, wait_opencode=wait_opencode)
        await self._monitor.begin(running)
        return self.document(running)

    def start(self, reference: str, *, wait_opencode: bool = True) -> Operation:
        """Begin `vm.start`.

        Raises `Conflict` when it runs already, `HostRequirement` for a full disk, `NotFound` or `Invalid` for an image
        that is gone, damaged, or needs more memory.
        """
        vm = self._vms.find(reference)
        self._operations.check_free(_target(vm))
        if vm.state is VmState.PAUSED:
            raise Conflict(f"{vm.name} is paused", hint=f"banger vm resume {vm.name}")
        if vm.state in LIVE:
            raise Conflict(f"{vm.name} is running already", hint=f"banger vm show {vm.name}")
        self._check_image(vm)
        self._lifecycle.check_room()
        return self._operations.begin(
            "vm.start", _target(vm), lambda job: self._boot(job, vm, wait_opencode=wait_opencode)
        )

    def _check_image(self, vm: Vm) -> None:
        """Raise unless the VM can boot of its image, as it and its files are now."""
        image = find_image(self._paths, vm.image)
        check_memory(
            image,
            vm.memory_mib,
            f"make another VM with --memory {image.memory_mib}M or more; `banger vm delete --keep-work-disk {vm.name}` "
            "keeps its work disk for that",
        )

    def change(self, reference: str, change: VmChange) -> Operation:
        """Begin `vm.set`. Raises `Invalid`, `Conflict` (it runs, or has no work disk), `NotFound` (image)."""
        change.check()
        vm = self._vms.find(reference)
        self._operations.check_free(_target(vm))
        if change.work_disk_bytes is not None:
            self._lifecycle.check_growth(vm, change.work_disk_bytes)
        image = find_image(self._paths, change.image) if change.image is not None else None
        if image is not None:
            if vm.state in LIVE:
                raise Conflict(
                    f"{vm.name} is {vm.state}, and its root disk in use",
                    hint=f"banger vm stop {vm.name}, then try again",
                )
            self._lifecycle.check_room()
            check_memory(image, vm.memory_mib, "make another VM of it, with more --memory")
            if vm.work_disk_bytes and not image.init_version:
                raise no_work_disk(image, f"make another VM of it, as {vm.name} has a work disk")
            if image.has_opencode and vm.opencode and vm.memory_mib < OPENCODE_MEMORY_MIB:
                raise _too_little_memory(image, vm.memory_mib, "")

        async def work(job: Job) -> VmDocument:
            changed = vm
            if image is not None:
                changed = await self._lifecycle.change_image(job, changed, image)
            if change.work_disk_bytes is not None:
                changed = await self._lifecycle.enlarge_work(job, changed, change.work_disk_bytes)
            return self.document(changed)

        return self._operations.begin("vm.set", _target(vm), work)

    def stop(self, reference: str, *, force: bool) -> Operation:
        """Begin `vm.stop`. Raises `Conflict` when it does not run."""
        vm = self._live(reference)

        async def work(job: Job) -> VmDocument:
            return self.document(await self._power_off(job, vm, force=force))

        return self._operations.begin("vm.stop", _target(vm), work)

    def restart(self, reference: str, *, force: bool, wait_opencode: bool = True) -> Operation:
        """Begin `vm.restart`: power off, then boot. Raises like `start`; it runs on then."""
        vm = self._live(reference)
        self._check_image(vm)
        self._lifecycle.check_room()

        async def work(job: Job) -> VmDocument:
            stopped = await self._power_off(job, vm, force=force)
            return await self._boot(job, stopped, wait_opencode=wait_opencode)

        return self._operations.begin("vm.restart", _target(vm), work)

    def pause(self, reference: str, problem: str = "") -> Operation:
        """Begin `vm.pause`, for a problem if there is one. Raises `Conflict` unless it runs."""
        vm = self._live(reference)
        if vm.state is VmState.PAUSED:
            raise Conflict(f"{vm.name} is paused already", hint=f"banger vm resume {vm.name}")

        async def work(job: Job) -> VmDocument:
            paused = await self._lifecycle.pause(job, vm, problem)
            await self._monitor.check(paused)
            return self.document(paused)

        return self._operations.begin("vm.pause", _target(vm), work)

    def resume(self, reference: str) -> Operation:
        """Begin `vm.resume`. Raises `Conflict` unless it is paused, `HostRequirement` for a full disk."""
        vm = self._live(reference)
        if vm.state is not VmState.PAUSED:
            raise Conflict(f"{vm.name} is not paused", hint=f"banger vm show {vm.name}")
        self._lifecycle.check_room_to_run_on(vm)

        async def work(job: Job) -> VmDocument:
            running = await self._lifecycle.resume(job, vm)
            await self._monitor.check(running)
            return self.document(running)

        return self._operations.begin("vm.resume", _target(vm), work)

    def _live(self, reference: str) -> Vm:
        vm = self._vms.find(reference)
        self._operations.check_free(_target(vm))
        if vm.state not in LIVE:
            raise _not_running(vm)
        return vm

    async def _power_off(self, job: Job, vm: Vm, *, force: bool) -> Vm:
        await self._lifecycle.power_off(job, vm, force=force)
        self._monitor.forget(vm.id)
        return self._set_stopped(vm.id, VmState.STOPPED, "")

    def _set_stopped(self, vm_id: str, state: VmState, problem: str) -> Vm:
        vm = self._vms.get(vm_id)
        assert vm is not None
        vm = msgspec.structs.replace(vm, state=state, process=None, started_at=None, problem=problem)
        self._vms.update(vm)
        return vm

    def delete(self, reference: str, *, keep_work_disk: bool = False) -> Operation:
        """Begin `vm.delete`: its engine, files and record go; its work disk becomes a volume if it shall be kept.

        Raises `Invalid` when there is no work disk to keep, `HostRequirement` when it cannot be moved.
        """
        vm = self._vms.find(reference)
        self._operations.check_free(_target(vm))
        volume = volume_for(self._paths, vm, self._vms.all()) if keep_work_disk else ""

        async def work(job: Job) -> VolumeDocument | None:
            # what its guest has not written yet is to be kept as well
            doomed = await self._power_off(job, vm, force=False) if volume and vm.state in LIVE else vm
            # from here on a crash is completed at the next start, never taken back
            doomed = msgspec.structs.replace(doomed, state=VmState.DELETING, keep_work_disk=volume)
            self._vms.update(doomed)
            self._monitor.forget(vm.id)
            return await self.remove(job, doomed)

        return self._operations.begin("vm.delete", _target(vm), work)

    async def remove(self, job: Job, vm: Vm) -> VolumeDocument | None:
        """What is kept of it becomes a volume before anything is removed."""
        kept = None
        async with job.stage("end the engine"):
            await self._lifecycle.end_engine(vm)
        if vm.keep_work_disk:
            async with job.stage("keep the work disk"):
                kept = await keep_work_disk(self._paths, vm)
                job.note(f"the work disk is the volume {kept.name} now" if kept else "it had been kept before")
        async with job.stage("remove the disks"):
            await self._lifecycle.remove_files(vm)
            self._vms.remove(vm.id)
        return describe(self._paths, kept) if kept else None

    def engine_ended(self, vm_id: str, status: int | None) -> None:
        """The monitor's word that an engine has ended by itself: the guest powered off, or something broke."""
        vm = self._vms.get(vm_id)
        if vm is None or vm.state not in LIVE:
            return
        self._monitor.forget(vm_id)
        self._lifecycle.engine_gone(vm_id)
        if status == 0:
            self._set_stopped(vm_id, VmState.STOPPED, "the guest powered off")
        else:
            why = "how is not known" if status is None else f"status {status}"
            self._set_stopped(vm_id, VmState.FAILED, f"the engine ended by itself ({why})")

    def document(self, vm: Vm) -> VmDocument:
        """What is told of a VM."""
        paths = self._paths.vm(vm.id)
        return VmDocument(
            id=vm.id,
            name=vm.name,
            state=vm.state,
            image=vm.image,
            vcpu=vm.vcpu,
            memory_mib=vm.memory_mib,
            disk_bytes=vm.disk_bytes,
            disk_allocated_bytes=allocated_bytes(paths.root_disk),
            work_disk_bytes=vm.work_disk_bytes,
            work_disk_allocated_bytes=allocated_bytes(paths.work_disk),
            engine=vm.engine,
            engine_version=vm.engine_version,
            engine_reason=vm.engine_reason,
            jailed=vm.jailed,
            accelerator=vm.accelerator,
            accelerator_reason=vm.accelerator_reason,
            network="user" if vm.guest_ip else "none",
            guest_ip=vm.guest_ip,
            nat=vm.nat,
            created_at=datetime.fromtimestamp(vm.created_at, UTC).isoformat(timespec="seconds"),
            uptime_s=round(time.time() - vm.started_at, 1) if vm.started_at else None,
            health=self._monitor.status(vm),
            opencode=vm.opencode,
            build=vm.build,
            problem=vm.problem,
            engine_pid=vm.process.pid if vm.process else None,
            vsock_socket=str(paths.vsock_socket),
        )


def check_memory(image: Image, memory_mib: int, instead: str) -> None:
    """Raise `Invalid` when an image's machines need more memory than so many MiB; `instead`: the next step."""
    if memory_mib < image.memory_mib:
        raise Invalid(
            f"the image {image.name} needs {image.memory_mib} MiB of memory, and {memory_mib} MiB were asked for",
            hint=instead,
        )


def _too_little_memory(image: Image, memory_mib: int, otherwise: str) -> Invalid:
    return Invalid(
        f"the image {image.name} runs opencode, which needs {OPENCODE_MEMORY_MIB} MiB of memory, "
        f"and {memory_mib} MiB were asked for",
        hint=f"choose --memory {OPENCODE_MEMORY_MIB}M or more{otherwise}",
    )


def _not_running(vm: Vm) -> Conflict:
    verb = "resume" if vm.state is VmState.PAUSED else "start"
    why = f": {vm.problem}" if vm.problem else ""
    return Conflict(f"{vm.name} is {vm.state}, not running{why}", hint=f"banger vm {verb} {vm.name}")


def _target(vm: Vm) -> str:
    return f"vm/{vm.name}"
