"""The machine in which an image is built: made from its base or a layer, logged in to, kept as layers, flattened."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Coroutine, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from banger.config import Settings
from banger.engine.launch import tail
from banger.guest.channel import Guest
from banger.guest.stream import drop
from banger.images.catalog import part_path
from banger.images.layers import Layers
from banger.images.locks import image_in_use
from banger.jobs.operations import Job
from banger.model.engine import NO_SPACE
from banger.model.errors import CommandFailed, HostRequirement
from banger.model.guest import ExecRequest
from banger.model.image import Image
from banger.model.vm import LIVE, Vm, VmState
from banger.paths import Paths
from banger.service.admission import Admission
from banger.service.bundle import RuntimeBundle
from banger.service.health import Monitor
from banger.service.lifecycle import Lifecycle
from banger.storage.copies import copy_disk
from banger.storage.flatten import flatten
from banger.storage.mapped import attach_root, detach_root
from banger.store.vms import VmStore
from banger.system.files import allocated_bytes
from banger.system.watch import Growth

T = TypeVar("T")

if TYPE_CHECKING:
    from banger.guest.shell import Shell

SSHD_S = 120.0
AGENT_S = 30.0
SYNC_S = 600.0
_LINE, _PIECE = 512, 65536
_LET_IN = (
    "umask 077; mkdir -p /root/.ssh && read -r key && "
    '{ grep -qxF "$key" /root/.ssh/authorized_keys 2>/dev/null || echo "$key" >>/root/.ssh/authorized_keys; }'
)


class BuildMachines:
    """What builds do to their machines. Each method is a part of an operation."""

    def __init__(
        self,
        paths: Paths,
        settings: Settings,
        vms: VmStore,
        lifecycle: Lifecycle,
        monitor: Monitor,
        bundle: RuntimeBundle,
        admission: Admission,
    ) -> None:
        self._paths = paths
        self._vms = vms
        self._lifecycle = lifecycle
        self._monitor = monitor
        self._bundle = bundle
        self._admission = admission
        self.layers = Layers(paths.layers, settings.build_layers_mib << 20)

    def check_room(self) -> None:
        """Raises `HostRequirement` when the disk is too full for a machine to run."""
        self._admission.check()

    def console(self, vm: Vm) -> list[str]:
        """The last lines of its console; none once it is gone."""
        return tail(self._paths.vm(vm.id).console_log).splitlines()

    async def make(self, job: Job, vm: Vm, base: Image, layer: str | None) -> bool:
        """Its disk, of a layer where it can have one; False when it has none though it should."""
        await self._lifecycle.make_disks(job, vm, None)
        overlay = self._paths.vm(vm.id).root_overlay
        if layer is None or not overlay.exists():
            return layer is None
        fresh = overlay.with_name(f".layer-{overlay.name}")
        async with job.stage("copy the layer"):
            try:
                await copy_disk(self.layers.disk(layer), fresh, job, self._admission.room)
                self.layers.used(layer)
                fresh.chmod(0o600)
                fresh.rename(overlay)
            except (OSError, msgspec.MsgspecError) as error:
                job.note(f"the layer is of no use: {error}")
                return False
            finally:
                fresh.unlink(missing_ok=True)
        return True

    async def boot(self, job: Job, vm: Vm) -> Vm:
        return await self._lifecycle.boot(job, vm, wait_opencode=False)

    @contextlib.asynccontextmanager
    async def shell(self, job: Job, vm: Vm) -> AsyncIterator[tuple["Shell", str]]:
        """A login as root, and the name of the guest's init. Raises `GuestUnreachable`, `Conflict` (no sshd)."""
        from banger.guest.shell import (
            login,
        )  # SSH takes a fifth of a second to import, which no start of a daemon needs

        guest = Guest(self._paths.vm(vm.id).vsock_socket)
        async with contextlib.AsyncExitStack() as stack:
            async with job.stage("log in", deadline_s=SSHD_S * 2):
                await self._let_in(guest)
                streams = await guest.tunnel("localhost", 22, SSHD_S)
                stack.push_async_callback(drop, streams[1])
                info = await guest.info(timeout=AGENT_S)  # host keys are made before sshd listens
                shell = await stack.enter_async_context(login(streams, info.ssh_host_keys, self._paths.ssh_key))
            yield shell, info.init

    async def _let_in(self, guest: Guest) -> None:
        """The key that the image was made with may have been another."""
        key = await self._bundle.key()
        request = ExecRequest(argv=("sh", "-c", _LET_IN), timeout_s=AGENT_S)
        if (await guest.run(request, stdin=f"{key.line}\n".encode())).exit.exit_code():
            raise CommandFailed("the guest's /root/.ssh/authorized_keys cannot be written")

    async def or_full(self, vm: Vm, work: Coroutine[Any, Any, T]) -> T:
        """Do the work in its guest; raise `HostRequirement` at once when its engine pauses it, as the disk is full."""
        working = asyncio.ensure_future(work)
        full = asyncio.ensure_future(_until_full(self._paths.vm(vm.id).engine_log))
        try:
            await asyncio.wait({working, full}, return_when=asyncio.FIRST_COMPLETED)
            if not working.done() and full.exception() is None:
                raise HostRequirement(
                    f"the build cannot go on: {self._admission.full()}",
                    hint="`banger capacity` shows what takes the room; what was done so far is kept as layers",
                )
            return await working  # where the log cannot be watched, deadlines are left
        finally:
            for task in (working, full):
                task.cancel()
            await asyncio.gather(working, full, return_exceptions=True)

    def has_layers(self, vm: Vm) -> bool:
        """Whether its disk can be kept as a layer: only an overlay is small."""
        return self.layers.on and self._paths.vm(vm.id).root_overlay.exists()

    async def keep_layer(self, job: Job, vm: Vm, key: str, steps: Sequence[str]) -> None:
        """Keep its disk as it is now. A full disk is only told."""
        fresh = self.layers.fresh(key)
        async with job.stage("keep the layer"):
            try:
                written = ExecRequest(argv=("sync",), timeout_s=SYNC_S)
                await Guest(self._paths.vm(vm.id).vsock_socket).run(written)
                async with self._lifecycle.standing_still(vm):
                    await copy_disk(self._paths.vm(vm.id).root_overlay, fresh, job, self._admission.room)
                self.layers.commit(key, fresh, vm.image, steps)
            except (OSError, HostRequirement) as error:
                job.note(f"the layer is not kept: {error}")
            finally:
                fresh.unlink(missing_ok=True)

    async def power_off(self, job: Job, vm: Vm) -> Vm:
        await self._lifecycle.power_off(job, vm, force=False)
        return self._stopped(vm)

    def _stopped(self, vm: Vm) -> Vm:
        stored = self._vms.get(vm.id) or vm
        stopped = msgspec.structs.replace(stored, state=VmState.STOPPED, process=None, started_at=None)
        self._vms.update(stopped)
        return stopped

    async def flatten(self, job: Job, vm: Vm, base: Image, target: Path) -> None:
        """Make `target` what is on its root disk; it is powered off."""
        paths, root = self._paths.vm(vm.id), part_path(self._paths, base, "root")
        async with job.stage("flatten"):
            size = _flat_bytes(paths.root_disk, root)
            with image_in_use(root, base.name), self._admission.room(size):
                if paths.root_overlay.exists():
                    await flatten(paths.root_overlay, root, target, size, job)
                elif paths.root_changes.exists():
                    try:
                        device = await attach_root(vm.id, root, paths.root_changes, vm.disk_bytes, job.note)
                        await flatten(device, None, target, size, job)
                    finally:
                        await detach_root(vm.id)
                else:
                    await copy_disk(paths.root_copy, target, job, lambda _: contextlib.nullcontext())

    async def keep(self, vm: Vm, job: Job) -> bool:
        """Make it an ordinary VM, whatever comes; False when there is too little of it to be one."""
        stored = self._vms.get(vm.id)
        if stored is None or stored.state not in (*LIVE, VmState.STOPPED):
            return False
        job.keep()
        kept = msgspec.structs.replace(stored, build="")
        self._vms.update(kept)
        if kept.state in LIVE:
            self._monitor.watch(kept)
        return True

    async def remove(self, job: Job, vm: Vm) -> None:
        """It has done its work."""
        async with job.stage("remove the VM"):
            await self._lifecycle.end_engine(vm)
            await self._lifecycle.remove_files(vm)
            self._vms.remove(vm.id)

    async def forget(self, vm: Vm) -> None:
        self._vms.remove(vm.id)


async def _until_full(engine_log: Path) -> None:
    """Return once the engine logs that it has paused its guest for want of room."""
    growth = Growth()
    try:
        with engine_log.open("rb") as file, growth.of(engine_log) as written:
            file.seek(0, os.SEEK_END)
            tail = b""
            while NO_SPACE.encode() not in tail:
                await written.wait()
                written.clear()
                tail = tail[-_LINE:] + file.read(_PIECE)
    finally:
        growth.close()


def _flat_bytes(disk: Path, base: Path) -> int:
    """What a flat disk takes at most, before its zeros are found."""
    return allocated_bytes(disk) + allocated_bytes(base)
