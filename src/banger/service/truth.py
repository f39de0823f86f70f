"""A VM's record is kept true to its engine, which may pause a guest that nobody else paused: the disk is full."""

import logging

import msgspec

from banger.engine.api import EngineApi
from banger.engine.capabilities import capabilities_of
from banger.engine.launch import tail
from banger.jobs.operations import Operations
from banger.model.engine import NO_SPACE, PAUSED, RESUMED
from banger.model.errors import BangerError, Busy, HostRequirement
from banger.model.sizes import MIB
from banger.model.vm import LIVE, Vm, VmState
from banger.paths import Paths
from banger.service.admission import FLOOR_MIN, Admission
from banger.store.vms import VmStore
from banger.system.watch import Growth

LOG_BYTES = MIB
PIECE = 65536
log = logging.getLogger(__name__)


class Truth:
    """Compares records with what engines say. While an operation works on a VM, that alone writes its record."""

    def __init__(self, paths: Paths, vms: VmStore, operations: Operations, admission: Admission) -> None:
        self._paths = paths
        self._vms = vms
        self._operations = operations
        self._admission = admission
        self._growth: Growth | None = None

    async def of(self, vm: Vm) -> Vm:
        """The VM as its engine has it, which is then its record too. An engine that does not answer changes nothing."""
        if vm.state not in LIVE or self._holder(vm) is not None:
            return vm
        try:
            state = (await EngineApi(self._paths.vm(vm.id).api_socket).info()).state
        except BangerError:
            return vm
        stored = self._vms.get(vm.id)
        if stored != vm or self._holder(vm) is not None:
            return stored or vm  # it has changed meanwhile: what the engine said is old
        if state == "Paused" and vm.state is VmState.RUNNING:
            return self._became(vm, VmState.PAUSED, self._why(vm))
        if state == "Running" and vm.state is VmState.PAUSED:
            return self._became(vm, VmState.RUNNING, "")
        return vm

    def _became(self, vm: Vm, state: VmState, problem: str) -> Vm:
        log.warning("vm %s: its engine says %s, and nobody asked for it%s", vm.name, state, problem and f": {problem}")
        changed = msgspec.structs.replace(vm, state=state, problem=problem)
        try:
            self._vms.update(changed)
        except HostRequirement as error:
            log.error("%s", error.message)  # the next check tries again
            return vm
        return changed

    def _why(self, vm: Vm) -> str:
        full = _says_full(tail(self._paths.vm(vm.id).engine_log, LOG_BYTES))
        # what could not be written does not stand in the log
        return self._admission.full() if full or self._admission.free < FLOOR_MIN else "its engine paused it"

    def _holder(self, vm: Vm) -> str | None:
        """The id of the operation that works on a VM."""
        try:
            self._operations.check_free(f"vm/{vm.name}")
        except Busy as busy:
            return str(busy.details["operation"])
        return None

    async def follow(self, vm: Vm) -> None:
        """Wake when the engine logs that it has paused the guest, and look then; until cancelled."""
        try:
            if not capabilities_of(vm.engine, vm.engine_version).stops_when_full:
                return
            if self._growth is None:
                self._growth = Growth()
            await self._follow(vm, self._growth)
        except (OSError, BangerError) as error:
            log.warning("vm %s: its engine's log cannot be watched (%s); its health checks are left", vm.name, error)

    async def _follow(self, vm: Vm, growth: Growth) -> None:
        path = self._paths.vm(vm.id).engine_log
        with path.open("rb") as file, growth.of(path) as written:
            file.seek(0, 2)
            while True:
                await written.wait()
                written.clear()
                while piece := file.read(PIECE):
                    if PAUSED.encode() in piece:
                        await self._look(vm.id)

    async def _look(self, vm_id: str) -> None:
        while (vm := self._vms.get(vm_id)) is not None:
            if (holder := self._holder(vm)) is None:
                await self.of(vm)
                return
            await self._operations.wait(holder)

    def close(self) -> None:
        """Once; after those who follow have ended."""
        if self._growth is not None:
            self._growth.close()


def _says_full(text: str) -> bool:
    """Whether the last that an engine's log tells of the guest's processors is that a full disk stopped them."""
    for line in reversed(text.splitlines()):
        said = line.partition("] ")[2]  # time and id come before it
        if said.startswith(PAUSED):
            return NO_SPACE in said
        if said == RESUMED:
            return False
    return False
