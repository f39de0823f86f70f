"""Images of files that a person has: registered where they lie, and promoted to images of banger's own."""

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from banger.guest.copies import Told, write_tree
from banger.images.boot import BOOT_ARGS, checked_arguments
from banger.images.catalog import check_free, find_image, measure_parts, publish, read_metadata, workspace
from banger.images.counted import counted
from banger.images.draft import Draft
from banger.images.inspection import Given, Inspected, existing, inspect
from banger.images.registered import (
    become_managed,
    differences,
    files_elsewhere,
    measure_elsewhere,
    replace_registered,
    same_files,
)
from banger.jobs.operations import Job, Operations
from banger.model.errors import Conflict, Invalid
from banger.model.image import MODULES, Image, ImagePart
from banger.model.names import validate_name
from banger.model.operation import Operation
from banger.model.registration import PromoteSpec, RegisterSpec
from banger.model.sizes import GIB, show_size
from banger.paths import ImagePaths, Paths
from banger.service.drafts import Drafts
from banger.store.vms import VmStore
from banger.system.files import allocated_bytes, in_thread

LOOK_S, DIGESTS_S, PUBLISH_S = 1800.0, 3600.0, 300.0
MODULES_MAX = 1 * GIB
_UNKNOWN = "unknown"
_SAME = ("root", "kernel", "initramfs")


class Registration:
    """Everything that the API offers of registered images."""

    def __init__(self, paths: Paths, vms: VmStore, operations: Operations, drafts: Drafts) -> None:
        self._paths = paths
        self._vms = vms
        self._operations = operations
        self._drafts = drafts

    def register(self, spec: RegisterSpec) -> Operation:
        """Begin `image.register`, whose result is the image; the same files again change nothing.

        Raises `Invalid` (names, paths, boot arguments), `NotFound` (nothing to look at again), `Conflict` (a managed
        image has the name), `Busy`.
        """
        spec.check()
        target = _target(spec.name)
        self._operations.check_free(target)
        image = self._registered(spec.name)
        if spec.again:
            seen = image or find_image(self._paths, spec.name)
            if spec.replace:
                raise Invalid("--replace needs the files that the image shall have", hint="give --rootfs and --kernel")
            return self._operations.begin("image.register", target, lambda job: self._look_again(job, seen))
        given, words = self._given(spec), checked_arguments(BOOT_ARGS if spec.boot_args is None else spec.boot_args)
        return self._operations.begin(
            "image.register", target, lambda job: self._register(job, spec, given, words, image)
        )

    def _registered(self, name: str) -> Image | None:
        """The registered image of that name, whatever has become of its files. Raises `Conflict` for a managed one."""
        where = self._paths.image(name)
        if not where.directory.is_dir():
            return None
        image = read_metadata(where)
        if image.managed:
            raise Conflict(
                f"there is an image {name} already, and it is banger's own",
                hint="choose another name; `banger image list` shows them",
            )
        return image

    def _given(self, spec: RegisterSpec) -> Given:
        def file(path: str | None, what: str, *, directory: bool = False) -> Path | None:
            found = None if path is None else existing(path, what, directory=directory)
            for ours in (self._paths.vms, self._paths.volumes):
                if found is not None and found.is_relative_to(ours.resolve()):
                    raise Invalid(f"--{what}: {path} belongs to a VM, or is a volume", hint="name a copy of it")
            return found

        root, kernel = file(spec.rootfs, "rootfs"), file(spec.kernel, "kernel")
        assert root is not None
        assert kernel is not None
        return Given(
            root=root,
            kernel=kernel,
            initramfs=file(spec.initramfs, "initramfs"),
            modules=file(spec.modules, "modules", directory=True),
            packages=file(spec.packages, "packages"),
            kernel_config=file(spec.kernel_config, "kernel-config"),
        )

    async def _look_again(self, job: Job, image: Image) -> Image:
        """The registered files may have been touched, or copied anew: the image is good again if they are the same."""
        async with workspace(self._paths) as work:
            async with job.stage("digests", deadline_s=DIGESTS_S):
                fresh = await measure_elsewhere(files_elsewhere(self._paths, image), job)
                found = same_files(image, fresh)
                job.note("the files have the content that was registered")
            if found == image:
                return image
            async with job.stage("publish", deadline_s=PUBLISH_S):
                return await replace_registered(self._paths, image, found, {}, work)

    async def _register(self, job: Job, spec: RegisterSpec, given: Given, words: str, old: Image | None) -> Image:
        async with workspace(self._paths) as work:
            out = ImagePaths(work / "image")
            out.directory.mkdir(mode=0o700)
            async with job.stage("look at the files", deadline_s=LOOK_S):
                total = sum(allocated_bytes(path) for path in (given.kernel, given.initramfs) if path is not None)
                found = await counted(lambda told: inspect(given, out, work, told), job, total)
                for note in found.notes:
                    job.note(note)
            if found.modules is not None:
                async with job.stage("modules", deadline_s=LOOK_S):
                    found.made[MODULES] = await _pack(job, found.modules, out.modules)
            async with job.stage("digests", deadline_s=DIGESTS_S):
                parts = await measure_elsewhere(found.elsewhere, job)
                parts |= await in_thread(measure_parts, out.directory, found.made)
            image = _described(spec, given, words, found, parts)
            async with job.stage("publish", deadline_s=PUBLISH_S):
                if old is not None:
                    return await self._again(job, spec, old, image, found.made, work)
                await in_thread(publish, self._paths, image, out.directory)
        return image

    async def _again(
        self, job: Job, spec: RegisterSpec, old: Image, image: Image, made: Mapping[str, Path], work: Path
    ) -> Image:
        """Of a name that is registered already: nothing where all is the same, else what `--replace` allows."""
        others = differences(old, image)
        if not others:
            fresh = {role: part for role, part in image.parts.items() if part.elsewhere}
            if (same := same_files(old, fresh)) == old:
                job.note("the same files are registered already: nothing was changed")
                return old
            job.note("the same files are registered already: only their times are recorded anew")
            return await replace_registered(self._paths, old, same, {}, work)
        if not spec.replace:
            raise Conflict(
                f"the image {spec.name} is registered already, with other files: {'; '.join(others)}",
                hint="--replace registers these in their place; or choose another name",
                details={"differences": others},
            )
        self._check_no_vms(old, image)
        return await replace_registered(self._paths, old, image, made, work)

    def _check_no_vms(self, old: Image, new: Image) -> None:
        """A VM's disk has what was changed of one root: over another it would be nonsense."""
        vms = [vm.name for vm in self._vms.all() if vm.image == old.name]
        if vms and old.parts["root"].sha256 != new.parts["root"].sha256:
            raise Conflict(
                f"the image {old.name} cannot get another root: the disks of {', '.join(vms)} lie over the one it has",
                hint=f"delete these VMs, or give them another image by `banger vm set {vms[0]} --image IMAGE`; or "
                "register the new files under another name",
                details={"vms": vms},
            )

    def promote(self, name: str, spec: PromoteSpec) -> Operation:
        """Begin `image.promote`, whose result is the managed image; one that is managed already changes nothing.

        Raises `NotFound`, `Invalid` (files that changed or are gone), `Conflict` (the new name is taken), `Busy`.
        """
        self._operations.check_free(_target(name))
        image = find_image(self._paths, name)
        if spec.new in (None, name):
            if image.managed:
                return self._done(image, f"{name} is banger's own already: nothing was changed")
            return self._operations.begin("image.promote", _target(name), lambda job: self._promote(job, image))
        new = validate_name(str(spec.new), "image name")
        self._operations.check_free(_target(new))
        if image.managed:
            raise Conflict(f"the image {name} is banger's own already", hint=f"make VMs of it as it is, as {name}")
        if self._paths.image(new).directory.is_dir():
            there = find_image(self._paths, new)
            if there.managed and all(there.parts[role].sha256 == image.parts[role].sha256 for role in _SAME):
                return self._done(there, f"{new} is a copy of {name} already: nothing was changed")
            check_free(self._paths, new)
        return self._operations.begin(
            "image.promote", _target(name), lambda job: self._promote(job, image, new), also=(_target(new),)
        )

    def _done(self, image: Image, note: str) -> Operation:
        async def work(job: Job) -> Image:
            async with job.stage("look at the image"):
                job.note(note)
            return image

        return self._operations.begin("image.promote", _target(image.name), work)

    async def _promote(self, job: Job, image: Image, new: str | None = None) -> Image:
        """Copies of all files, which must be what was registered; then they are the image's, or another image."""
        async with workspace(self._paths) as work:
            directory = work / "image"
            directory.mkdir(mode=0o700)
            await self._drafts.copy_base(job, image, directory, image.parts)
            shall = msgspec.structs.replace(image, name=new or image.name, managed=True)
            made = await self._drafts.finish(job, Draft(directory, shall), boot=False, publish=False)
            _check_same(image, made)
            if new is not None:
                await self._drafts.publish(job, made, directory)
                return made
            async with job.stage("publish", deadline_s=PUBLISH_S):
                return await become_managed(self._paths, image, made, directory, work)


async def _pack(job: Job, modules: Path, target: Path) -> Path:
    """Write an archive of the modules, the same for the same; raises `Invalid` when it is too much, or no modules."""

    def work(told: Told) -> None:
        done = 0

        def counted_too(count: int) -> None:
            nonlocal done
            done += count
            if done > MODULES_MAX:
                raise Invalid(f"--modules: {modules} has more than {show_size(MODULES_MAX)}")
            told(count)

        with target.open("xb") as out:
            write_tree(modules, "", out, counted_too)

    await counted(work, job, None)
    return target


def _check_same(registered: Image, copied: Image) -> None:
    for role, part in registered.parts.items():
        if role in copied.parts and copied.parts[role].sha256 != part.sha256:
            raise Invalid(
                f"{part.file} has another content than when it was registered as the image {registered.name}",
                hint=f"`banger image register {registered.name}` looks at its files again",
            )


def _described(spec: RegisterSpec, given: Given, words: str, found: Inspected, parts: dict[str, ImagePart]) -> Image:
    return Image(
        name=spec.name,
        distro=spec.distro or found.distro or _UNKNOWN,
        release=spec.release or found.release or _UNKNOWN,
        kernel_release=found.kernel_release or _UNKNOWN,
        boot_args=words,
        parts=parts,
        packages=found.packages,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        origin=f"registered: {given.root}",
        needs_acpi=found.needs_acpi,
        has_opencode=found.has_opencode,
        init_version=found.init_version,
        managed=False,
    )


def _target(name: str) -> str:
    return f"image/{validate_name(name, 'image name')}"
