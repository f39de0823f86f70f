"""Building images: a temporary machine of a base, the steps of a recipe, and an image of what came of it."""

import secrets
import time
from collections.abc import Sequence
from datetime import UTC, datetime

import msgspec

from banger.config import Settings
from banger.images import catalog, opencode
from banger.images.appliance import tidy
from banger.images.counted import counted
from banger.images.distros import distro_of
from banger.images.draft import Draft
from banger.images.layers import layer_keys
from banger.images.manifest import Package, read_manifest
from banger.jobs.operations import Job, Operations
from banger.model.errors import BangerError, Invalid
from banger.model.image import IMAGE_FORMAT, MODULES, Image
from banger.model.names import NAME_MAX, new_id
from banger.model.operation import Operation
from banger.model.recipe import BuildSpec, Built, PackageChange
from banger.model.sizes import show_size
from banger.model.vm import DEFAULT_MEMORY_MIB, DEFAULT_VCPU, Vm, VmState
from banger.paths import Paths
from banger.service.build_end import put_in_order
from banger.service.build_log import BuildLog
from banger.service.build_machine import BuildMachines
from banger.service.build_steps import Bench, Step, check_steps, plan, take
from banger.service.bundle import RuntimeBundle
from banger.service.drafts import Drafts
from banger.store.vms import VmStore
from banger.system.files import in_thread

KERNEL_PARTS = ("kernel", "initramfs", "bzimage", "config")
CONSOLE_LINES = 15
_TIDY_BUT_HOME = b"KEEP_ROOT=1\n"  # what the steps put into /root comes into the work seed


class BuildService:
    """`image build`."""

    def __init__(
        self,
        paths: Paths,
        settings: Settings,
        vms: VmStore,
        operations: Operations,
        machines: BuildMachines,
        bundle: RuntimeBundle,
        drafts: Drafts,
    ) -> None:
        self._paths = paths
        self._settings = settings
        self._vms = vms
        self._operations = operations
        self._machines = machines
        self._bundle = bundle
        self._drafts = drafts

    def build(self, spec: BuildSpec) -> Operation:
        """Begin `image.build`, whose result is `Built`.

        Raises `Invalid`, `NotFound` (the base), `Conflict` (the name), `Unsupported`, `HostRequirement`; nothing is
        made then.
        """
        spec.check()
        target = f"image/{spec.name}"
        self._operations.check_free(target)
        base = catalog.find_image(self._paths, spec.base)
        catalog.check_free(self._paths, spec.name)
        check_steps(spec, base.distro)
        vm = self._new(spec, base)
        self._machines.check_room()
        self._vms.add(vm)
        return self._operations.begin(
            "image.build", target, lambda job: self._work(job, spec, base, vm), also=(f"vm/{vm.name}",)
        )

    def _new(self, spec: BuildSpec, base: Image) -> Vm:
        least = base.parts["root"].bytes
        if spec.size is not None and spec.size < least:
            raise Invalid(
                f"a root disk of {show_size(spec.size)} is smaller than that of the image {base.name}",
                hint=f"choose --size {least >> 20}M or more, or leave it out",
            )
        return Vm(
            id=new_id(),
            name=f"build-{spec.name[: NAME_MAX - 11].rstrip('-')}-{secrets.token_hex(2)}",
            state=VmState.CREATING,
            image=base.name,
            vcpu=DEFAULT_VCPU,
            memory_mib=max(DEFAULT_MEMORY_MIB, base.memory_mib),
            nat=True,
            engine="",
            accelerator="",
            accelerator_reason="",
            guest_ip="",
            disk_bytes=spec.size or least,
            created_at=time.time(),
            build=spec.name,
        )

    async def _work(self, job: Job, spec: BuildSpec, base: Image, vm: Vm) -> Built:
        job.undo("forget the VM", lambda: self._machines.forget(vm))
        with BuildLog(self._paths.build_log(job.operation.id)) as log:
            try:
                return await self._build(job, spec, base, vm, log)
            except BangerError as error:
                raise await self._failed(job, spec, vm, log, error) from error

    async def _failed(self, job: Job, spec: BuildSpec, vm: Vm, log: BuildLog, error: BangerError) -> BangerError:
        """The error with all that helps to find its cause; the VM stays if it shall."""
        console = self._machines.console(vm)[-CONSOLE_LINES:]
        details = {"console": console, **error.details, "log": str(log.path)}
        hints = [error.hint] if error.hint else []
        if spec.keep_on_failure and await self._machines.keep(vm, job):
            job.note(f"the VM is kept: banger vm ssh {vm.name}")
            job.note(f"when you are done with it: banger vm delete {vm.name}")
            hints.append(f"look into it with `banger vm ssh {vm.name}`, then `banger vm delete {vm.name}`")
            details["vm"] = vm.name
        elif not spec.keep_on_failure and "step" in details:
            hints.append("with --keep-on-failure the VM stays, to be looked into")
        return type(error)(error.message, hint="; ".join(hints), details=details)

    async def _build(self, job: Job, spec: BuildSpec, base: Image, vm: Vm, log: BuildLog) -> Built:
        steps = await self._plan(job, spec, base)
        keys = layer_keys(base.parts["root"].sha256, vm.disk_bytes, ((step.kind, step.digest) for step in steps))
        root = catalog.part_path(self._paths, base, "root")
        known = self._machines.layers.longest(keys, root) if spec.cache and self._machines.layers.on else 0
        if not await self._machines.make(job, vm, base, keys[known - 1] if known else None):
            job.note("this engine's disks begin from the image itself: no layer is used")
            known = 0
        for step in steps[:known]:
            job.note(f"cached  {step.title}")
        vm = await self._machines.boot(job, vm)
        await self._machines.or_full(vm, self._provision(job, vm, log, steps, keys, known, base))
        vm = await self._machines.power_off(job, vm)
        image = await self._finish(job, spec, base, vm)
        changes = await in_thread(self._changes, base, image)
        return Built(
            image=image, packages=changes, cached=tuple(step.title for step in steps[:known]), log=str(log.path)
        )

    async def _plan(self, job: Job, spec: BuildSpec, base: Image) -> list[Step]:
        async with job.stage("recipe"):
            return await counted(
                lambda told: plan(spec, base.distro, self._paths, self._settings.npm_registry, told), job, None
            )

    async def _provision(
        self, job: Job, vm: Vm, log: BuildLog, steps: Sequence[Step], keys: Sequence[str], known: int, base: Image
    ) -> None:
        """Do the steps that no layer holds, and put the guest in order for its end."""
        scratch, seconds = self._paths.vm(vm.id).state, self._settings.build_step_timeout_s
        async with self._machines.shell(job, vm) as (shell, init):
            bench = Bench(shell, job, log, init=init, scratch=scratch, seconds=seconds)
            for count, step in enumerate(steps[known:], start=known + 1):
                self._machines.check_room()
                await take(step, bench, log)
                if self._machines.has_layers(vm):
                    titles = [each.title for each in steps[:count]]
                    await self._machines.keep_layer(job, vm, keys[count - 1], titles)
            modules = catalog.part_path(self._paths, base, MODULES) if MODULES in base.parts else None
            await put_in_order(bench, log, self._bundle.agent(), modules)

    async def _finish(self, job: Job, spec: BuildSpec, base: Image, vm: Vm) -> Image:
        async with catalog.workspace(self._paths) as work:
            directory = work / "image"
            directory.mkdir(mode=0o700)
            draft = Draft(directory, self._describe(spec, base), besides=_besides(spec, base))
            await self._machines.flatten(job, vm, base, draft.files.root)
            if not spec.keep_on_failure:
                await self._machines.remove(job, vm)
            await self._drafts.copy_base(job, base, directory, KERNEL_PARTS)
            image = await self._drafts.finish(job, draft, script=_TIDY_BUT_HOME + tidy())
        if spec.keep_on_failure:
            await self._machines.remove(job, vm)
        return image

    def _describe(self, spec: BuildSpec, base: Image) -> Image:
        return msgspec.structs.replace(
            base,
            name=spec.name,
            parts={},
            packages=0,
            created_at=datetime.now(UTC).isoformat(timespec="seconds"),
            origin=f"built from {base.name}",
            has_opencode=base.has_opencode or spec.opencode,
            managed=True,
            parents=(base.name, *base.parents),
            format=IMAGE_FORMAT,
        )

    def _changes(self, base: Image, image: Image) -> tuple[PackageChange, ...]:
        """What the image's packages differ in from the base's, by name; nothing where the base has no list."""
        if "manifest" not in base.parts:
            return ()
        before, after = (self._listed(each) for each in (base, image))
        return tuple(
            PackageChange(name, before.get(name, ""), after.get(name, ""))
            for name in sorted(before.keys() | after.keys())
            if before.get(name) != after.get(name)
        )

    def _listed(self, image: Image) -> dict[str, str]:
        if "manifest" not in image.parts:
            return {}
        listed = read_manifest(catalog.part_path(self._paths, image, "manifest"))
        versions: dict[str, list[str]] = {}
        for package in listed:
            versions.setdefault(package["name"], []).append(package["version"])
        return {name: " ".join(sorted(set(found))) for name, found in versions.items()}

    async def sweep(self) -> None:
        """Remove what a killed daemon had not finished, and logs of builds that are forgotten; at start only."""
        await self._machines.layers.sweep()
        oldest = time.time() - self._settings.keep_operations_days * 86400

        def prune() -> None:
            for path in self._paths.builds.glob("*.log"):
                if path.stat().st_mtime < oldest:
                    path.unlink(missing_ok=True)

        await in_thread(prune)


def _besides(spec: BuildSpec, base: Image) -> tuple[Package, ...]:
    """Packages of the image that neither its package database nor the base's list knows."""
    if not spec.opencode:
        return ()
    return (opencode.BUILDS[distro_of(base.distro).libc].manifest,)
