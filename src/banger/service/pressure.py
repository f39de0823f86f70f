"""Disk pressure: VMs that nothing else would stop are paused before a write of theirs finds the host's disk full."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable

from banger.engine.capabilities import capabilities_of
from banger.model.errors import BangerError
from banger.model.sizes import MIB, show_size
from banger.model.vm import Vm, VmState
from banger.service.admission import Admission
from banger.service.truth import Truth

PERIOD_S = 1.0
AGAIN_S = 30.0
# A full disk may have no room even for the line in the engine's log that tells of it
FULL = 16 * MIB
log = logging.getLogger(__name__)

Pause = Callable[[str, str], object]


class Pressure:
    """Looks each second, while VMs are watched, how much is free; `pause` begins to pause a VM, for a problem."""

    def __init__(self, admission: Admission, truth: Truth, find: Callable[[str], Vm | None], pause: Pause) -> None:
        self._admission = admission
        self._truth = truth
        self._find = find
        self._pause = pause
        self._watched: set[str] = set()
        self._tried: dict[str, float] = {}
        self._task: asyncio.Task[None] | None = None

    def watch(self, vm_id: str) -> None:
        """Begin to look after a live VM."""
        self._watched.add(vm_id)
        if self._task is None:
            self._task = asyncio.create_task(self._look())

    def forget(self, vm_id: str) -> None:
        self._watched.discard(vm_id)
        self._tried.pop(vm_id, None)
        if not self._watched and self._task is not None:
            self._task.cancel()
            self._task = None

    async def _look(self) -> None:
        while True:
            with contextlib.suppress(OSError):
                free = self._admission.free
                if free < self._admission.floor:
                    for vm_id in tuple(self._watched):
                        await self._relieve(vm_id, free)
            await asyncio.sleep(PERIOD_S)

    async def _relieve(self, vm_id: str, free: int) -> None:
        vm = self._find(vm_id)
        if vm is None or vm.state is not VmState.RUNNING:
            return
        try:
            if capabilities_of(vm.engine, vm.engine_version).stops_when_full:
                if free < FULL:
                    await self._truth.of(vm)
            elif time.monotonic() >= self._tried.get(vm_id, 0.0):
                self._pause(vm_id, self._admission.full())
                self._tried[vm_id] = time.monotonic() + AGAIN_S
                log.warning("vm %s: pausing it, as only %s of the host's disk is free", vm.name, show_size(free))
        except BangerError as error:
            # an operation works on it, or has just stopped it
            log.info("vm %s is not paused for the full disk yet: %s", vm.name, error.message)
