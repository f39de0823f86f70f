"""One VM's disks: made, given to its engine, grown, taken away."""

import shutil
from pathlib import Path

import msgspec

from banger.engine.select import Engine
from banger.guest.channel import Guest
from banger.images.catalog import find_image, part_path, read_metadata
from banger.images.locks import image_in_use
from banger.images.parts import bring_up_to_date
from banger.jobs.operations import Job
from banger.model.errors import CommandFailed, Conflict, Invalid, NotFound, Unsupported
from banger.model.image import WORK_SEED, Image
from banger.model.machine import Disk
from banger.model.sizes import show_size
from banger.model.vm import DEFAULT_WORK_DISK_BYTES, Vm, VmSpec, VmState
from banger.model.volume import Volume
from banger.paths import ROOT_CHANGES, ROOT_COPY, ROOT_OVERLAY, ROOTS, Paths
from banger.service.admission import Admission
from banger.service.bundle import RuntimeBundle
from banger.service.seeds import WorkSeeds
from banger.storage import volumes
from banger.storage.mapped import attach_root, detach_root
from banger.storage.overlays import change_base, create_root_overlay, create_root_raw
from banger.storage.repair import mend
from banger.storage.work_disks import create_work_disk, disk_size, enlarge_work_disk
from banger.system.ext4 import read_superblock
from banger.system.files import in_thread
from banger.system.qcow2 import read_qcow2

GROW_S = 60.0


def root_size(spec: VmSpec, image: Image) -> int:
    """Bytes of a new VM's root disk. Raises `Invalid` when it would be smaller than the image's."""
    least = image.parts["root"].bytes
    if spec.disk_bytes is not None and spec.disk_bytes < least:
        raise Invalid(
            f"a root disk of {show_size(spec.disk_bytes)} is smaller than that of the image {image.name}, "
            f"and what is in it cannot be made to fit",
            hint=f"choose --disk {least >> 20}M or more, or leave it out",
        )
    return spec.disk_bytes or least


def work_size(spec: VmSpec, image: Image) -> int:
    """Bytes of a new VM's work disk; 0 for none. Raises `Invalid` when it would be smaller than the image's seed."""
    least = image.parts[WORK_SEED].bytes if WORK_SEED in image.parts else 0
    if not image.init_version:
        if spec.work_disk_bytes:
            raise no_work_disk(image, "leave --work-disk out")
        return 0
    if spec.work_disk_bytes is None:
        return max(DEFAULT_WORK_DISK_BYTES, least)
    if 0 < spec.work_disk_bytes < least:
        raise Invalid(
            f"a work disk of {show_size(spec.work_disk_bytes)} does not hold what the image {image.name} puts into it",
            hint=f"choose --work-disk {least >> 20}M or more, or --no-work-disk",
        )
    return spec.work_disk_bytes


def no_work_disk(image: Image, instead: str) -> Invalid:
    """Why a VM of this image has no work disk; what to do `instead` of asking for one."""
    return Invalid(
        f"the initramfs of the image {image.name} is not banger's, and mounts no work disk",
        hint=f"{instead}: /root is on the root disk then; or register the image without --initramfs, so that banger "
        "makes one",
    )


def check_growth(vm: Vm, size: int, work_disk: Path) -> None:
    """Raise `Conflict` unless the VM's work disk can become so many bytes large; `HostRequirement` when it is gone."""
    if not vm.work_disk_bytes:
        raise Conflict(
            f"{vm.name} has no work disk to enlarge", hint="`banger vm create` makes one, unless told --no-work-disk"
        )
    has = disk_size(work_disk)
    if size < has:
        raise Conflict(
            f"the work disk of {vm.name} has {show_size(has)} and cannot be made smaller: files may lie anywhere in it",
            hint="make another VM with a smaller one, and copy what you need with `banger vm cp`",
        )


def changed_to(vm: Vm, image: Image, paths: Paths) -> Vm:
    """A VM's record for a root disk of another image; opencode runs where the image has it, unless it was declined."""
    try:
        declined = find_image(paths, vm.image).has_opencode and not vm.opencode
    except (NotFound, Invalid):
        declined = False
    return msgspec.structs.replace(
        vm,
        image=image.name,
        disk_bytes=max(vm.disk_bytes, image.parts["root"].bytes),
        opencode=image.has_opencode and not declined,
        problem="",
    )


def former_base(overlay: Path, image: Image) -> Path | None:
    """The file behind an overlay where that was the image's root before, and is not now; None when nothing is to do.

    An overlay that cannot be, or names something else, is for others to refuse.
    """
    formerly = image.parts["root"].formerly
    if not formerly or not overlay.exists():
        return None
    try:
        named = read_qcow2(overlay).backing
    except Invalid:
        return None
    return Path(named) if named in formerly and named != image.parts["root"].file else None


class Disks:
    """The disks of all VMs. Each method is a step of an operation."""

    def __init__(self, paths: Paths, admission: Admission, seeds: WorkSeeds, bundle: RuntimeBundle) -> None:
        self._paths = paths
        self._admission = admission
        self._seeds = seeds
        self._bundle = bundle

    async def make_root(self, job: Job, vm: Vm, image: Image, engine: Engine) -> None:
        """An overlay, O(1) in the image's size, or what an engine that reads no overlays can have.

        It is the VM's once `settle_root` was called for a record that names this image.
        """
        paths, base = self._paths.vm(vm.id), part_path(self._paths, image, "root")
        async with job.stage("root disk"):
            with image_in_use(base, image.name):
                if engine.capabilities.qcow2:
                    await create_root_overlay(base, paths.next_root(image.name, ROOT_OVERLAY), vm.disk_bytes)
                else:
                    copy, changes = (paths.next_root(image.name, name) for name in (ROOT_COPY, ROOT_CHANGES))
                    await create_root_raw(vm.id, base, copy, changes, vm.disk_bytes, job, self._admission.room)

    def settle_root(self, vm: Vm) -> None:
        """The root disk that was made for the image in the VM's record takes the place of the one before.

        Safe to call at any time that no engine has the disk.
        """
        paths = self._paths.vm(vm.id)
        for name in ROOTS:
            fresh = paths.next_root(vm.image, name)
            if fresh.exists():
                fresh.rename(paths.state / name)
                for other in ROOTS:
                    if other != name:
                        (paths.state / other).unlink(missing_ok=True)

    async def drop_root(self, vm: Vm) -> None:
        """Remove what was made for the image in this record, and not committed."""
        for name in ROOTS:
            self._paths.vm(vm.id).next_root(vm.image, name).unlink(missing_ok=True)

    def settle(self, vm: Vm) -> None:
        """At the daemon's start, of a VM without an engine: commit or drop what was half-done, and remove leftovers."""
        self.settle_root(vm)
        for left in self._paths.vm(vm.id).state.glob(".*"):
            shutil.rmtree(left) if left.is_dir() else left.unlink()

    async def make_work(self, job: Job, vm: Vm, image: Image) -> None:
        """A clone of the image's seed, or of one that is made now for an image that has none."""
        paths = self._paths.vm(vm.id)
        seed = await self._seeds.seed_for(image, paths.state, job)
        try:
            async with job.stage("work disk"):
                await create_work_disk(seed.path, paths.work_disk, vm.work_disk_bytes, job, self._admission.room)
        finally:
            if seed.temporary:
                seed.path.unlink(missing_ok=True)

    async def fit(self, job: Job, vm: Vm) -> None:
        """Make everything fit for a boot: an image that mounts the work disk, and a work disk that is sound."""
        if not vm.work_disk_bytes:
            return
        await bring_up_to_date(self._paths, find_image(self._paths, vm.image))
        async with job.stage("check the work disk"):
            key = await self._bundle.key()
            await mend(self._paths.vm(vm.id).work_disk, key.line, job, self._admission.room)

    def booted(self, vm: Vm) -> None:
        """A VM runs: its image is given a newer seed, in the background, where it needs one."""
        if vm.work_disk_bytes:
            self._seeds.refresh_later(vm.image)

    async def take_volume(self, job: Job, vm: Vm, volume: Volume) -> None:
        """Make a volume the work disk; when the operation fails it is the volume again, as it was."""
        disk = self._paths.vm(vm.id).work_disk

        async def give_back() -> None:
            if disk.exists():
                await in_thread(volumes.keep, self._paths, disk, volume)

        async with job.stage("work disk"):
            job.undo("make it a volume again", give_back)
            await in_thread(volumes.take, self._paths, volume.name, disk)

    async def enlarge_work(self, job: Job, vm: Vm, size: int) -> None:
        """Give the work disk so many bytes; the guest's kernel grows the filesystem, now or when it runs next."""
        async with job.stage("enlarge the work disk"):
            await in_thread(enlarge_work_disk, self._paths.vm(vm.id).work_disk, size)
            if vm.state is not VmState.RUNNING:
                job.note("the guest grows its filesystem when it runs")

    async def grow(self, job: Job, vm: Vm) -> None:
        """Let a guest that runs grow its filesystems to the size of their disks, where they are smaller."""
        # whatever has become of a registered image's files meanwhile
        image, paths = read_metadata(self._paths.image(vm.image)), self._paths.vm(vm.id)
        smaller = ["/"] if vm.disk_bytes > image.parts["root"].bytes else []
        if vm.work_disk_bytes and read_superblock(paths.work_disk).bytes < disk_size(paths.work_disk):
            smaller.append("/root")
        for path in smaller:
            async with job.stage(f"grow the filesystem of {path}", deadline_s=GROW_S):
                # the kernel hears of a larger disk a moment after the engine was told
                least = disk_size(paths.work_disk) if path == "/root" else 0
                await Guest(paths.vsock_socket).grow(path, device_bytes=least, timeout=GROW_S)

    async def grow_or_tell(self, job: Job, vm: Vm) -> None:
        """The same for a machine that is to run whether its guest can grow them or not; that it cannot is told."""
        try:
            await self.grow(job, vm)
        except (Unsupported, CommandFailed) as error:
            job.note(f"{error.message}: it stays smaller than its disk")

    async def attach_root(self, job: Job, vm: Vm, image: Image) -> Path:
        """The root disk as an engine that is about to start opens it: the file, or the device that is put together."""
        paths, base = self._paths.vm(vm.id), part_path(self._paths, image, "root")
        await self._follow_root(job, paths.root_overlay, image, base)
        if not paths.root_changes.exists():
            return paths.root_disk
        return await attach_root(vm.id, base, paths.root_changes, vm.disk_bytes, job.note)

    async def _follow_root(self, job: Job, overlay: Path, image: Image, base: Path) -> None:
        """An overlay that names a file which was the image's root before is told the one that is it now."""
        if not (former := former_base(overlay, image)):
            return
        await change_base(overlay, former, base)
        job.note(f"the root disk lay over {former}; it lies over {base} now, which has the same content")

    async def detach_root(self, vm: Vm) -> None:
        """Take a device apart again, once nobody has it open. Of a file nothing is to be done."""
        await detach_root(vm.id)

    def of(self, vm: Vm, root: Path) -> tuple[Disk, ...]:
        """As its engine is told them. Raises `HostRequirement` when the work disk is gone."""
        disks = [Disk(id="root", path=str(root), root=True)]
        if vm.work_disk_bytes:
            work = self._paths.vm(vm.id).work_disk
            disk_size(work)
            disks.append(Disk(id="work", path=str(work)))
        return tuple(disks)
