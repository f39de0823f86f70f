"""A VM that stands still for a moment, so that its disks can be copied while it runs."""

import contextlib
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from banger.engine.api import EngineApi
from banger.guest.channel import Guest
from banger.guest.freeze import frozen
from banger.model.errors import BangerError, CommandFailed, GuestUnreachable
from banger.model.firecracker import Vm as VmStateDocument
from banger.model.vm import Vm, VmState
from banger.paths import Paths

NOT_FROZEN = "what the guest had not written yet is not in it"


@asynccontextmanager
async def standing_still(paths: Paths, vm: Vm, note: Callable[[str], None]) -> AsyncIterator[None]:
    """Within the block neither guest nor engine writes to the VM's disks, and what was written is in their files.

    The guest's filesystems are frozen, then its processors stopped. Whatever becomes of the block, the VM runs on as
    before; if we die in it, `wake` lets it at the next start. A VM that does not run, or is paused, is left alone. How
    long it stood still is noted. Raises `CommandFailed`, `GuestUnreachable` when the engine does not do it.
    """
    if vm.state is not VmState.RUNNING:
        if vm.state is VmState.PAUSED:
            note(f"{vm.name} is paused: {NOT_FROZEN}")
        yield
        return
    async with AsyncExitStack() as stack:
        mounts = ["/root", "/"] if vm.work_disk_bytes else ["/"]
        try:
            await stack.enter_async_context(frozen(Guest(paths.vm(vm.id).vsock_socket), mounts))
        except (CommandFailed, GuestUnreachable) as error:
            note(f"{error.message}: {NOT_FROZEN}")
        begun = time.monotonic()
        await stack.enter_async_context(_stopped(paths, vm))
        yield
    note(f"{vm.name} stood still for {time.monotonic() - begun:.2f} s")


@asynccontextmanager
async def _stopped(paths: Paths, vm: Vm) -> AsyncIterator[None]:
    api, mark = EngineApi(paths.vm(vm.id).api_socket), _mark(paths, vm)
    mark.touch()
    try:
        await api.call("PATCH", "/vm", VmStateDocument(state="Paused"))
        yield
    finally:
        # an engine that was not paused does not mind
        await api.call("PATCH", "/vm", VmStateDocument(state="Resumed"))
        mark.unlink(missing_ok=True)


async def wake(paths: Paths, vm: Vm) -> None:
    """Let a VM run on that a dead daemon had stopped for a moment; others are left alone."""
    mark = _mark(paths, vm)
    if mark.exists():
        if vm.state is VmState.RUNNING:
            with contextlib.suppress(BangerError):  # its record is made true to its engine then
                await EngineApi(paths.vm(vm.id).api_socket).call("PATCH", "/vm", VmStateDocument(state="Resumed"))
        mark.unlink(missing_ok=True)


def _mark(paths: Paths, vm: Vm) -> Path:
    """There while the VM's processors are stopped for a moment."""
    return paths.vm(vm.id).state / ".still"
