"""At the daemon's start: make what is stored and what runs agree, after whatever ended the last daemon."""

import logging

import msgspec

from banger.engine.launch import alive
from banger.jobs.operations import Operations
from banger.model.operation import Operation
from banger.model.vm import LIVE, Vm, VmState
from banger.paths import Paths
from banger.service.health import Monitor
from banger.service.lifecycle import Lifecycle
from banger.service.stillness import wake
from banger.service.volumes import keep_work_disk
from banger.store.vms import VmStore
from banger.system.e2fsprogs import reclaim

log = logging.getLogger(__name__)
_STARTS = frozenset({"vm.start", "vm.restart"})


class Reconciler:
    """Decides for each VM what its record, its engine and an interrupted operation mean together."""

    def __init__(
        self, paths: Paths, vms: VmStore, operations: Operations, lifecycle: Lifecycle, monitor: Monitor
    ) -> None:
        self._paths = paths
        self._vms = vms
        self._operations = operations
        self._lifecycle = lifecycle
        self._monitor = monitor

    async def run(self) -> None:
        interrupted = {operation.target: operation for operation in self._operations.mark_interrupted()}
        for operation in interrupted.values():
            log.warning("operation %s (%s %s) was interrupted", operation.id, operation.kind, operation.target)
        for vm in self._vms.all():
            await self._settle(vm, interrupted.get(f"vm/{vm.name}"))

    async def _settle(self, vm: Vm, interrupted: Operation | None) -> None:
        work_disk = self._paths.vm(vm.id).work_disk
        if work_disk.exists():
            reclaim(work_disk)  # a program that was ended with the daemon before had it
        if vm.build or vm.state in (VmState.CREATING, VmState.DELETING):
            was = f"building the image {vm.build}" if vm.build else vm.state
            log.warning("vm %s: was %s when the daemon ended; removing it", vm.name, was)
            await self._lifecycle.end_engine(vm)
            if await self._keep(vm):
                await self._lifecycle.remove_files(vm)
                self._vms.remove(vm.id)
            return
        vm = self._with_work_disk(vm)
        if vm.state in LIVE and await self._lifecycle.adopt(vm):
            await wake(self._paths, vm)
            log.info("vm %s: adopted, engine pid %d", vm.name, vm.process.pid if vm.process else 0)
            self._monitor.watch(vm)
            return
        if vm.state in LIVE or vm.process is not None or (interrupted and interrupted.kind in _STARTS):
            await self._stopped(vm)
        self._lifecycle.settle_disks(vm)

    async def _keep(self, vm: Vm) -> bool:
        """Make a volume of the work disk that the record says is to be kept; False when that failed: nothing goes."""
        try:
            if volume := await keep_work_disk(self._paths, vm):
                log.warning("vm %s: its work disk is the volume %s now", vm.name, volume.name)
        except OSError as error:
            problem = f"its work disk could not be made a volume: {error}"
            log.error("vm %s: %s", vm.name, problem)
            self._vms.update(msgspec.structs.replace(vm, state=VmState.FAILED, process=None, problem=problem))
            return False
        return True

    def _with_work_disk(self, vm: Vm) -> Vm:
        """The VM with its work disk's size, where the daemon ended before it was recorded."""
        disk = self._paths.vm(vm.id).work_disk
        if disk.exists() and (size := disk.stat().st_size) != vm.work_disk_bytes:
            log.warning("vm %s: its work disk has %d bytes, which is recorded now", vm.name, size)
            vm = msgspec.structs.replace(vm, work_disk_bytes=size)
            self._vms.update(vm)
        return vm

    async def _stopped(self, vm: Vm) -> None:
        running = vm.process is not None and alive(vm.process)
        await self._lifecycle.end_engine(vm)
        if vm.state in LIVE:
            problem = "its engine did not answer" if running else "the engine ended while no daemon watched"
        else:
            problem = "the daemon ended while the VM was starting"
        log.warning("vm %s: %s; it is stopped now", vm.name, problem)
        stopped = msgspec.structs.replace(vm, state=VmState.STOPPED, process=None, started_at=None, problem=problem)
        self._vms.update(stopped)
