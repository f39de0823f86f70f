"""Volumes: list, show, attach, delete; and what becomes of a work disk whose VM goes."""

import logging
from collections.abc import Callable, Iterable
from datetime import UTC, datetime

import msgspec

from banger.images.catalog import read_metadata
from banger.jobs.operations import Job, Operations
from banger.model.documents import VmDocument, VolumeDocument
from banger.model.errors import Conflict, Invalid
from banger.model.names import numbered_name
from banger.model.operation import Operation
from banger.model.vm import LIVE, Vm, VmState
from banger.model.volume import Volume
from banger.paths import Paths
from banger.service.disks import no_work_disk
from banger.storage import volumes
from banger.store.vms import VmStore
from banger.system.files import allocated_bytes, in_thread

log = logging.getLogger(__name__)


class VolumeService:
    """Everything that the API offers of volumes; `document` is what is told of a VM."""

    def __init__(
        self, paths: Paths, vms: VmStore, operations: Operations, document: Callable[[Vm], VmDocument]
    ) -> None:
        self._paths = paths
        self._vms = vms
        self._operations = operations
        self._document = document

    def list(self) -> list[VolumeDocument]:
        return [describe(self._paths, volume) for volume in volumes.list_volumes(self._paths)]

    def show(self, name: str) -> VolumeDocument:
        return describe(self._paths, volumes.find_volume(self._paths, name))

    def attach(self, name: str, reference: str) -> Operation:
        """Begin `volume.attach`: the volume becomes the work disk of a VM, and is no volume any more.

        Raises `Conflict` unless the VM is stopped and has none, `Busy`, `NotFound`, `Invalid` (a damaged volume),
        `HostRequirement` when it cannot be moved.
        """
        self._operations.check_free(volume_target(name))
        volume, vm = volumes.find_volume(self._paths, name), self._vms.find(reference)
        target = f"vm/{vm.name}"
        self._operations.check_free(target)
        check_stopped(vm, "get a work disk")
        self._check_mounts_one(vm, name)
        self._check_has_none(vm, name)
        volumes.check_movable(self._paths, self._paths.volume(name).disk)

        async def work(job: Job) -> VmDocument:
            async with job.stage("attach the volume"):
                self._check_has_none(vm, name)
                job.undo("make it a volume again", lambda: self._give_back(vm.id, volume))
                await in_thread(volumes.take, self._paths, name, self._paths.vm(vm.id).work_disk)
                return self._document(self._record(vm.id, self._paths.vm(vm.id).work_disk.stat().st_size))

        return self._operations.begin("volume.attach", target, work, also=(volume_target(name),))

    def _check_mounts_one(self, vm: Vm, name: str) -> None:
        try:
            image = read_metadata(self._paths.image(vm.image))
        except Invalid:
            return  # damaged, or gone: its start will say so
        if not image.init_version:
            raise no_work_disk(image, f"make another VM with --volume {name}, of another image")

    def _check_has_none(self, vm: Vm, name: str) -> None:
        if vm.work_disk_bytes or self._paths.vm(vm.id).work_disk.exists():
            raise Conflict(
                f"{vm.name} has a work disk already",
                hint=f"`banger vm create --volume {name}` makes a VM with this one",
            )

    def _record(self, vm_id: str, size: int) -> Vm:
        vm = self._vms.get(vm_id)
        assert vm is not None
        vm = msgspec.structs.replace(vm, work_disk_bytes=size)
        self._vms.update(vm)
        return vm

    async def _give_back(self, vm_id: str, volume: Volume) -> None:
        disk = self._paths.vm(vm_id).work_disk
        if disk.exists():
            self._record(vm_id, 0)
            await in_thread(volumes.keep, self._paths, disk, volume)

    def delete(self, name: str) -> Operation:
        """Begin `volume.delete`; damaged ones can be deleted too. Raises `NotFound`, `Invalid` (the name), `Busy`."""
        self._operations.check_free(volume_target(name))
        if name not in volumes.taken_names(self._paths):
            volumes.find_volume(self._paths, name)

        async def work(job: Job) -> None:
            async with job.stage("remove the disk"):
                await volumes.delete(self._paths, name)

        return self._operations.begin("volume.delete", volume_target(name), work)

    async def sweep(self) -> None:
        """Settle what a killed daemon left half-done; at start only."""
        for volume in await volumes.sweep(self._paths):
            log.warning("the volume %s was being made or taken when the daemon ended; it is a volume now", volume.name)


def volume_target(name: str) -> str:
    """What an operation that works on a volume holds."""
    return f"volume/{name}"


def describe(paths: Paths, volume: Volume) -> VolumeDocument:
    """What is told of a volume."""
    disk = paths.volume(volume.name).disk
    return VolumeDocument(
        name=volume.name,
        bytes=disk.stat().st_size if disk.exists() else 0,
        allocated_bytes=allocated_bytes(disk),
        image=volume.image,
        vm=volume.vm,
        created_at=volume.created_at,
    )


def check_stopped(vm: Vm, what: str) -> None:
    """Raise `Conflict` unless nothing uses the VM's disks; one that failed counts as stopped."""
    if vm.state in LIVE:
        raise Conflict(f"{vm.name} is {vm.state}, and must be stopped to {what}", hint=f"banger vm stop {vm.name}")
    if vm.state not in (VmState.STOPPED, VmState.FAILED):
        raise Conflict(f"{vm.name} is {vm.state}", hint=f"banger vm show {vm.name}")


def volume_for(paths: Paths, vm: Vm, others: Iterable[Vm]) -> str:
    """The name of the volume that this VM's work disk can become: its own, or where that is taken, with a number.

    Raises `Invalid` when it has no work disk, `HostRequirement` when that cannot be moved.
    """
    disk = paths.vm(vm.id).work_disk
    if disk.exists():
        volumes.check_movable(paths, disk)
    elif vm.state is not VmState.DELETING:  # of one that was not deleted to the end, it may have been kept already
        raise Invalid(f"{vm.name} has no work disk", hint="delete it without --keep-work-disk")
    promised = {other.keep_work_disk for other in others if other.id != vm.id}
    return numbered_name(vm.name, volumes.taken_names(paths) | promised)


async def keep_work_disk(paths: Paths, vm: Vm) -> Volume | None:
    """Make the work disk the volume that the VM's record names; None when it names none, or that has been done."""
    disk = paths.vm(vm.id).work_disk
    if not vm.keep_work_disk or not disk.exists():
        return None
    now = datetime.now(UTC).isoformat(timespec="seconds")
    volume = Volume(name=vm.keep_work_disk, image=vm.image, vm=vm.name, created_at=now)
    return await in_thread(volumes.keep, paths, disk, volume)
