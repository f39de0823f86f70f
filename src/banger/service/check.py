"""Checks of a stopped VM's disks, which change nothing."""

import contextlib

from banger.images.catalog import part_path, read_metadata
from banger.jobs.operations import Job, Operations
from banger.model.documents import DiskCheck
from banger.model.errors import Invalid
from banger.model.operation import Operation
from banger.model.vm import Vm
from banger.paths import Paths
from banger.service.admission import Admission
from banger.service.disks import former_base
from banger.service.volumes import check_stopped
from banger.storage import check
from banger.store.vms import VmStore


class CheckService:
    """Everything that the API offers of checks."""

    def __init__(self, paths: Paths, vms: VmStore, operations: Operations, admission: Admission) -> None:
        self._paths = paths
        self._vms = vms
        self._operations = operations
        self._admission = admission

    def check(self, reference: str) -> Operation:
        """Begin `vm.check`; what is wrong is its result, no error. Raises `Conflict` unless the VM is stopped."""
        vm = self._vms.find(reference)
        target = f"vm/{vm.name}"
        self._operations.check_free(target)
        check_stopped(vm, "be checked")

        async def work(job: Job) -> list[DiskCheck]:
            async with job.stage("root disk"):
                parts = [await self._root(vm, job)]
            work_disk = self._paths.vm(vm.id).work_disk
            if vm.work_disk_bytes or work_disk.exists():
                async with job.stage("work disk"):
                    parts.append(await check.check_disk("work disk", work_disk, job, self._admission.room))
            return parts

        return self._operations.begin("vm.check", target, work)

    async def _root(self, vm: Vm, job: Job) -> DiskCheck:
        paths, room = self._paths.vm(vm.id), self._admission.room
        if paths.root_copy.exists():
            return await check.check_disk("root disk", paths.root_copy, job, room)
        if paths.root_changes.exists():
            return DiskCheck(part="root disk", ok=True, notes=["what device-mapper wrote was not looked at"])
        base, former = self._paths.image(vm.image).root, None
        with contextlib.suppress(Invalid):  # damaged, which its disk need not be
            image = read_metadata(self._paths.image(vm.image))
            base, former = part_path(self._paths, image, "root"), former_base(paths.root_overlay, image)
        return await check.check_overlay(paths.root_overlay, base, job, room, former)
