"""Short-lived machines of banger's own: one that edits a root filesystem while nothing of it runs, and one that only
sees whether an image boots. Nobody's VM, and nothing is left of one.
"""

import asyncio
import os
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

from banger.config import Settings
from banger.engine.api import EngineApi
from banger.engine.launch import clean_up, end, find_engine, tail
from banger.engine.select import Engine, Needs
from banger.guest.channel import Guest
from banger.guest.protocol import READY_PORT
from banger.guest.ready import ReadyListener
from banger.images.appliance import BEGINS, BUSY, NO_DISK, NO_MOUNT, UNTRIMMED, arguments, behind, outcome
from banger.images.homes import Room
from banger.images.work_seed import measure
from banger.jobs.operations import Job
from banger.model.errors import BangerError, GuestUnreachable, HostRequirement, Invalid, Timeout, Unsupported
from banger.model.image import Image
from banger.model.machine import Disk, Machine
from banger.model.names import new_id
from banger.model.sizes import MIB
from banger.paths import ImagePaths, JailPaths, Paths, VmPaths
from banger.service.booting import (
    BOOTS_MAX,
    PANIC,
    ChooseEngine,
    GuestPanicked,
    configure,
    or_end,
    start_engine,
    start_machine,
    until_ok,
)
from banger.storage.copies import copy_disk
from banger.storage.overlays import create_root_overlay
from banger.system.ext4 import discard_ext4, make_ext4
from banger.system.files import in_thread, remove_tree
from banger.system.watch import process_end

EDIT_S = 1800.0
CONSOLE_BYTES = 64 * 1024
CONSOLE_LINES = 20
LEAST_MIB, TRIAL_MIB = 256, 512
INITRAMFS_MAX = 512 * MIB
TREE_DEVICE = "/dev/vdb"


class _Own(NamedTuple):
    """One machine: its id and where its files are."""

    id: str
    paths: VmPaths
    jail: JailPaths


class Appliance:
    """Makes such machines. Each method is a stage of an operation; a cancelled one ends its machine."""

    def __init__(self, paths: Paths, settings: Settings, engine: ChooseEngine, room: Room) -> None:
        self._paths = paths
        self._settings = settings
        self._engine = engine
        self._room = room

    async def edit(self, job: Job, image: Image, directory: Path, script: bytes, tree: Path | None = None) -> None:
        """Run a script over root.ext4 in the directory, which has the image's vmlinux and initramfs.cpio as well.

        The script is for busybox's sh: $ROOT is the mounted root, $TREE a read-only copy of the directory `tree`. What
        it frees is a hole in the file afterwards. Raises `BangerError` with the machine's last lines when the script
        fails, `Invalid` when the root cannot be mounted, `Unsupported` when a foreign initramfs lacks drivers,
        `Timeout`, `HostRequirement`; the root may be half-edited then.
        """
        async with job.stage("edit the root filesystem"):
            for again in range(BOOTS_MAX - 1, -1, -1):
                async with self._own() as own:
                    try:
                        said = await self._edit(image, ImagePaths(directory), own, script, tree)
                        break
                    except GuestPanicked as error:
                        if not again:
                            raise
                        job.note(f"{error.message}; booting it again")
            if UNTRIMMED in said:
                await discard_ext4(ImagePaths(directory).root)

    async def _edit(self, image: Image, files: ImagePaths, own: _Own, script: bytes, tree: Path | None) -> list[str]:
        engine = await self._choose()
        token = secrets.token_hex(8)
        initramfs = own.paths.state / "initramfs.cpio"
        disks = [Disk(id="root", path=str(files.root), root=True)]
        if tree is not None:
            disks.append(Disk(id="tree", path=str(await self._disk_of(tree, own)), read_only=True))
        size = await in_thread(_write_initramfs, files.initramfs, initramfs, script)
        off = "poweroff" if engine.capabilities.power_off else "reboot"
        machine = Machine(
            id=own.id,
            hostname="banger-edit",
            vcpu=1,
            memory_mib=LEAST_MIB + 5 * size // MIB,
            kernel=str(files.kernel),
            initramfs=str(initramfs),
            boot_args=arguments(image.boot_args, token, off=off, tree=TREE_DEVICE if tree is not None else ""),
            disks=tuple(disks),
            nics=(),
            vsock_socket=str(own.paths.vsock_socket),
        )
        try:
            async with asyncio.timeout(EDIT_S):
                process, machine = await start_engine(engine, machine, own.paths, own.jail)
                api = EngineApi(own.paths.api_socket)
                await configure(api, machine)
                await start_machine(api)
                await process_end(process.pid, process.start_ticks)
        except TimeoutError as error:
            raise Timeout(f"editing the root filesystem took longer than {EDIT_S:g} s", details=_told(own)) from error
        finally:
            await self._end(own)
            if os.geteuid() == 0:
                os.chown(files.root, 0, 0)  # a jailed engine had it
        return _settled(own, image, token)

    async def _disk_of(self, tree: Path, own: _Own) -> Path:
        disk = own.paths.state / "tree.ext4"
        measured = await in_thread(measure, tree)
        with self._room(measured.seed_bytes):
            await make_ext4(disk, measured.seed_bytes, label="banger-tree", tree=tree)
        return disk

    async def boot(self, job: Job, image: Image, directory: Path) -> None:
        """Boot a machine of what is in the directory, over its root, until its agent is well, and let it power off.

        Raises with the console's last lines when it does not come to that within the settings' boot_timeout_s.
        """
        async with job.stage("boot once"):
            for again in range(BOOTS_MAX - 1, -1, -1):
                async with self._own() as own:
                    try:
                        await self._boot(job, image, ImagePaths(directory), own)
                        return
                    except GuestPanicked as error:
                        if not again:
                            raise
                        job.note(f"{error.message}; booting it again")

    async def _boot(self, job: Job, image: Image, files: ImagePaths, own: _Own) -> None:
        engine = await self._choose()
        machine = Machine(
            id=own.id,
            hostname="banger-trial",
            vcpu=1,
            memory_mib=max(image.memory_mib, TRIAL_MIB),
            kernel=str(files.kernel),
            initramfs=str(files.initramfs),
            boot_args=image.boot_args,
            disks=(Disk(id="root", path=str(await self._over(job, engine, files.root, own)), root=True),),
            nics=(),
            vsock_socket=str(own.paths.vsock_socket),
            backing_files=(str(files.root),),
        )
        seconds = self._settings.boot_timeout_s
        try:
            async with asyncio.timeout(seconds):
                process, machine = await start_engine(engine, machine, own.paths, own.jail)
                api = EngineApi(own.paths.api_socket)
                await configure(api, machine)
                async with ReadyListener(own.paths.guest_listener(READY_PORT)) as ready:
                    await start_machine(api)
                    await or_end(process, own.paths.console_log, until_ok(own.paths.vsock_socket, ready))
            async with asyncio.timeout(self._settings.stop_timeout_s):
                await Guest(own.paths.vsock_socket).shutdown("poweroff" if engine.capabilities.power_off else "reboot")
                await process_end(process.pid, process.start_ticks)
        except GuestPanicked:
            raise
        except (GuestUnreachable, TimeoutError) as error:
            why = error.message if isinstance(error, GuestUnreachable) else f"nothing came of it within {seconds:g} s"
            raise GuestUnreachable(
                f"a machine of {image.name} does not boot until its agent answers and power off again: {why}",
                hint="the console's last lines are below; a slow host may need a larger boot_timeout_s",
                details=_told(own),
            ) from error
        finally:
            await self._end(own)

    async def _over(self, job: Job, engine: Engine, root: Path, own: _Own) -> Path:
        """A root disk that changes nothing of `root`."""
        if engine.capabilities.qcow2:
            await create_root_overlay(root, own.paths.root_overlay)
            return own.paths.root_overlay
        await copy_disk(root, own.paths.root_copy, job, self._room)
        own.paths.root_copy.chmod(0o600)
        return own.paths.root_copy

    async def _choose(self) -> Engine:
        """banger's own where it works: it gives freed blocks back, and reads overlays."""
        try:
            return await self._engine("qemu", Needs(nat=False, qcow2=False))
        except HostRequirement:
            return await self._engine("auto", Needs(nat=False, qcow2=False))

    @asynccontextmanager
    async def _own(self) -> AsyncIterator[_Own]:
        machine_id = new_id()
        own = _Own(machine_id, self._paths.appliance(machine_id), self._paths.jail(machine_id))
        own.paths.state.mkdir(parents=True, mode=0o700)
        try:
            yield own
        finally:
            await self._end(own)
            await remove_tree(own.paths.state)

    async def _end(self, own: _Own) -> None:
        """End the machine's engine, if it runs, whoever started it."""
        process = find_engine(own.id, own.paths, own.jail)
        if process is not None:
            await end(process)
        await clean_up(own.paths, own.jail)

    async def sweep(self) -> None:
        """End the machines that a killed daemon left, and remove their files. Only at start, before workspaces go."""
        for left in self._paths.appliances.glob("*"):
            await self._end(_Own(left.name, self._paths.appliance(left.name), self._paths.jail(left.name)))
            await remove_tree(left)


def _write_initramfs(initramfs: Path, target: Path, script: bytes) -> int:
    """How many bytes it has."""
    if initramfs.stat().st_size > INITRAMFS_MAX:
        raise Invalid(f"the initramfs has more than {INITRAMFS_MAX // MIB} MiB", hint="use one with fewer modules")
    content = behind(initramfs.read_bytes(), script)
    target.write_bytes(content)
    return len(content)


def _told(own: _Own) -> dict[str, object]:
    """What its console said last, for a person."""
    text = tail(own.paths.console_log)
    return {"console": text.splitlines()[-CONSOLE_LINES:], "console_tail": text}


def _settled(own: _Own, image: Image, token: str) -> list[str]:
    """What the machine said when it was done. Raises when it failed, or did not come so far."""
    console = tail(own.paths.console_log, CONSOLE_BYTES)
    said, before = outcome(console, token)
    if said[:1] == ["0"]:
        return said
    if not said and PANIC in console:
        raise GuestPanicked("the kernel panicked while it booted", details=_told(own))
    if said == [NO_DISK]:
        words = "the kernel with this initramfs does not see the disk"
        if image.init_version == 0:
            raise Unsupported(
                f"{words}: it lacks virtio_pci or virtio_blk",
                hint="give the image an initramfs with these drivers, or a kernel that has them built in",
                details=_told(own),
            )
        raise BangerError(words, details=_told(own))
    if said == [NO_MOUNT]:
        raise Invalid(
            "the root filesystem cannot be mounted: its kernel has no ext4, or it is damaged",
            hint="`e2fsck -f -n` tells what is wrong with it",
            details=_told(own),
        )
    last = before[-1] if before else "it said nothing"
    why = {BUSY: "it could not be unmounted", BEGINS: "the machine ended before it was done"}
    raise BangerError(
        f"the root filesystem could not be edited: {why.get(said[0] if said else BEGINS, last)}",
        hint="the machine's last lines are below",
        details=_told(own),
    )
