"""`commit`: the root of a VM, as it is now, becomes an image."""

from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import msgspec

from banger.images import catalog
from banger.images.appliance import tidy
from banger.images.catalog import find_image, part_path
from banger.images.draft import Draft
from banger.images.homes import ROOT_HOME, SEED_HOME, Room, copied_home, put_key
from banger.images.locks import image_in_use
from banger.images.parts import bring_up_to_date
from banger.jobs.operations import Job, Operations
from banger.model.commit import CommitSpec
from banger.model.errors import Conflict, Invalid, Unsupported
from banger.model.image import IMAGE_FORMAT, MODULES, WORK_SEED, Image
from banger.model.names import validate_name
from banger.model.operation import Operation
from banger.model.vm import Vm, VmState
from banger.paths import Paths
from banger.service.bundle import RuntimeBundle
from banger.service.drafts import Drafts
from banger.service.stillness import standing_still
from banger.storage.copies import copy_disk
from banger.storage.flatten import flatten
from banger.store.vms import VmStore
from banger.system.e2fsck import check_and_mend
from banger.system.ext4 import read_superblock
from banger.system.files import allocated_bytes, in_thread

COPY_S, CONVERT_S, HOME_S = 3600.0, 3600.0, 900.0
BOOT_PARTS = ("kernel", "bzimage", "initramfs", "config", MODULES)
_SETTLED = (VmState.RUNNING, VmState.PAUSED, VmState.STOPPED, VmState.FAILED)


class _Taken(NamedTuple):
    """Copies of a VM's disks, in the operation's workspace: the overlay, if its root disk is one, and the work disk."""

    overlay: Path | None
    work_disk: Path | None


class CommitService:
    """Makes images of VMs."""

    def __init__(
        self,
        paths: Paths,
        vms: VmStore,
        operations: Operations,
        drafts: Drafts,
        bundle: RuntimeBundle,
        room: Room,
    ) -> None:
        self._paths = paths
        self._vms = vms
        self._operations = operations
        self._drafts = drafts
        self._bundle = bundle
        self._room = room

    def commit(self, spec: CommitSpec) -> Operation:
        """Begin `image.commit`, which holds the VM until its disks are copied, and changes nothing of it.

        Raises `NotFound` (VM, its image), `Conflict` (the name is taken; the VM is being made), `Unsupported` (a root
        disk that is a dm-snapshot), `Busy`, `Invalid`.
        """
        vm = self._vms.find(spec.vm)
        target, held = f"image/{validate_name(spec.name, 'image name')}", f"vm/{vm.name}"
        for name in (target, held):
            self._operations.check_free(name)
        catalog.check_free(self._paths, spec.name)
        if vm.state not in _SETTLED:
            raise Conflict(f"{vm.name} is {vm.state}", hint=f"banger vm show {vm.name}")
        if self._paths.vm(vm.id).root_changes.exists():
            raise Unsupported(
                f"the root disk of {vm.name} is a dm-snapshot of its image, which cannot be committed",
                hint="make the VM on a filesystem that shares blocks (XFS, Btrfs), or with --engine qemu",
            )
        image = find_image(self._paths, vm.image)
        return self._operations.begin(
            "image.commit", target, lambda job: self._commit(job, spec, vm, image), also=(held,)
        )

    async def _commit(self, job: Job, spec: CommitSpec, vm: Vm, image: Image) -> Image:
        image = await bring_up_to_date(self._paths, image) if image.init_version else image
        base = part_path(self._paths, image, "root")
        async with catalog.workspace(self._paths) as work:
            draft = Draft(work / "image", _described(spec, vm, image))
            draft.directory.mkdir()
            with image_in_use(base, image.name):  # also when the VM is deleted meanwhile
                taken = await self._take(job, spec, vm, work, draft.files.root)
                job.release(f"vm/{vm.name}")
                if taken.overlay is not None:
                    await self._flatten(job, taken.overlay, base, draft.files.root)
                await self._drafts.copy_base(job, image, draft.directory, BOOT_PARTS)
                tree = None if spec.with_work_disk and not vm.work_disk_bytes else await self._home(job, image, work)
            if taken.work_disk is not None:
                draft = Draft(draft.directory, draft.image, (taken.work_disk, SEED_HOME))
            script = tidy() if tree is not None else b"KEEP_ROOT=1\n" + tidy()
            return await self._drafts.finish(job, draft, script=script, tree=tree, boot=False)

    async def _take(self, job: Job, spec: CommitSpec, vm: Vm, work: Path, root: Path) -> _Taken:
        """Copy the VM's disks as they are at one moment; a root disk that is raw already becomes the draft's."""
        paths = self._paths.vm(vm.id)
        overlay = work / "root.qcow2" if paths.root_overlay.exists() else None
        home = work / "home.ext4" if spec.with_work_disk and vm.work_disk_bytes else None
        async with job.stage("copy the disks", deadline_s=COPY_S), standing_still(self._paths, vm, job.note):
            await copy_disk(paths.root_disk, overlay or root, job, self._room)
            if home is not None:
                await copy_disk(paths.work_disk, home, job, self._room)
        if home is not None:
            async with job.stage("check the home", deadline_s=HOME_S):
                await _mended(home, job)
        return _Taken(overlay, home)

    async def _flatten(self, job: Job, overlay: Path, base: Path, root: Path) -> None:
        needed = allocated_bytes(base) + allocated_bytes(overlay)
        async with job.stage("flatten the root disk", deadline_s=CONVERT_S):
            with self._room(needed):
                await flatten(overlay, base, root, needed, job)
            overlay.unlink()

    async def _home(self, job: Job, image: Image, work: Path) -> Path:
        """A tree with the home that the image gave its machines, for the place of what the VM has in its own."""
        key, tree = await self._bundle.key(), work / "tree"
        role, inside = (WORK_SEED, SEED_HOME) if WORK_SEED in image.parts else ("root", ROOT_HOME)
        tree.mkdir()
        source = part_path(self._paths, image, role)
        async with (
            job.stage("the image's home", deadline_s=HOME_S),
            copied_home(source, inside, work, self._room) as home,
        ):
            await in_thread(put_key, home, key, image.seed_key)
            home.rename(tree / "home")
        return tree


def _described(spec: CommitSpec, vm: Vm, image: Image) -> Image:
    return msgspec.structs.replace(
        image,
        name=spec.name,
        parts={},
        packages=0,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        origin=f"the VM {vm.name}, of the image {image.name}",
        managed=True,
        parents=(image.name, *image.parents),
        format=IMAGE_FORMAT,
    )


async def _mended(home: Path, job: Job) -> None:
    """A copy of a work disk, in order: one that was not unmounted has a journal to replay."""
    home.chmod(0o600)
    if not read_superblock(home).clean:
        done = await check_and_mend(home)
        if done.status not in (0, 1):
            raise Invalid(
                "the copy of the work disk has errors that cannot be mended without loss",
                hint="`banger vm check` tells what is wrong with it; it can be committed without --with-work-disk",
            ) from done.failure()
        job.note("the journal of the copied work disk was replayed")
    home.chmod(0o644)
