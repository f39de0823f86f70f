"""The images as a whole: list, show, delete, rename, prune."""

import time
from collections.abc import Iterable

import msgspec

from banger.images import catalog, prune, renaming
from banger.jobs.operations import Job, Operations
from banger.model.catalogue import ImageDocument, Pruned, PrunedKind, PruneSpec
from banger.model.errors import Conflict
from banger.model.image import Image
from banger.model.names import validate_name
from banger.model.operation import Operation
from banger.paths import Paths
from banger.store.vms import VmStore
from banger.system.files import allocated_bytes, in_thread

# operations that only look, or that hold the one image they work on: caches mean nothing to them
_NO_CACHE = frozenset({"image.verify", "image.delete", "image.rename", "image.refresh", "image.prune"})
_LEAVES = {
    prune.LAYERS: "a build is under way",
    prune.IMPORTS: "an import is under way",
    prune.PARTS: "machines or images are being worked on",
    prune.DOWNLOADS: "something is being made or installed",
    prune.PACKAGES: "something is being made or installed",
}


class Catalogue:
    """Everything that the API offers of the images as a whole."""

    def __init__(self, paths: Paths, vms: VmStore, operations: Operations, keep_layers_days: float) -> None:
        self._paths = paths
        self._vms = vms
        self._operations = operations
        self._keep_layers_s = keep_layers_days * 86400

    def list(self) -> list[ImageDocument]:
        """Every image, by name; of damaged ones, the problem is told."""
        found = list(catalog.survey_images(self._paths))
        return [self._document(name, image, problem, found) for name, image, problem in found]

    def show(self, name: str) -> ImageDocument:
        """Raises `NotFound`, `Invalid` saying what is damaged."""
        image = catalog.find_image(self._paths, name)
        return self._document(name, image, "", list(catalog.survey_images(self._paths)))

    def _document(
        self, name: str, image: Image | None, problem: str, others: Iterable[tuple[str, Image | None, str]]
    ) -> ImageDocument:
        facts = msgspec.structs.asdict(image) if image else _unknown(name)
        directory = self._paths.image(name).directory
        return ImageDocument(
            **facts,
            vms=self._vms_of(name),
            children=tuple(child for child, other, _ in others if other and other.parents[:1] == (name,)),
            allocated_bytes=sum(map(allocated_bytes, directory.iterdir())),
            problem=problem,
        )

    def _vms_of(self, name: str) -> tuple[str, ...]:
        return tuple(vm.name for vm in self._vms.all() if vm.image == name)

    def delete(self, name: str, *, force: bool = False) -> Operation:
        """Begin `image.delete`; a damaged one can be deleted too. `force`: in spite of images that were made of it.

        Raises `NotFound`, `Invalid` (the name), `Conflict` naming the VMs or images that use it, `Busy`.
        """
        self._operations.check_free(image_target(name))
        self._check_there(name)
        self._check_deletable(name, force=force)

        async def work(job: Job) -> None:
            async with job.stage("remove the image"):
                self._check_deletable(name, force=force)
                await catalog.delete_image(self._paths, name)

        return self._operations.begin("image.delete", image_target(name), work)

    def _check_there(self, name: str) -> None:
        if not self._paths.image(validate_name(name, "image name")).directory.is_dir():
            catalog.find_image(self._paths, name)

    def _check_deletable(self, name: str, *, force: bool) -> None:
        self._check_no_vms(name, "is used by", "then it can be deleted")
        if not force and (children := catalog.children_of(self._paths, name)):
            which = f"the image{'s' if len(children) > 1 else ''} {', '.join(children)}"
            raise Conflict(
                f"{which} {'were' if len(children) > 1 else 'was'} made of the image {name}",
                hint="--force deletes it all the same: images have all their files themselves, and stay as they are",
                details={"images": children},
            )

    def _check_no_vms(self, name: str, how: str, then: str) -> None:
        if vms := self._vms_of(name):
            each = vms[0] if len(vms) == 1 else "NAME"
            raise Conflict(
                f"the image {name} {how} the VM{'s' if len(vms) > 1 else ''} {', '.join(vms)}",
                hint=f"`banger vm delete {each}`, or stop it and give it another image by "
                f"`banger vm set {each} --image IMAGE`; {then}",
                details={"vms": [*vms]},
            )

    def rename(self, name: str, new: str) -> Operation:
        """Begin `image.rename`, whose result is the image.

        Raises `NotFound`, `Invalid`, `Conflict` (the name is taken; VMs use it, which are named), `Busy`.
        """
        for one in (name, new):
            self._operations.check_free(image_target(one))
        self._check_there(name)
        catalog.check_free(self._paths, new)
        self._check_renamable(name)

        async def work(job: Job) -> Image:
            async with job.stage("rename"):
                self._check_renamable(name)
                return await renaming.rename_image(self._paths, name, new)

        return self._operations.begin("image.rename", image_target(name), work, also=(image_target(new),))

    def _check_renamable(self, name: str) -> None:
        self._check_no_vms(
            name, "cannot be renamed: its files are named in the root disks of", "then it can be renamed"
        )

    def prune(self, spec: PruneSpec) -> Operation:
        """Begin `image.prune`: what can be made again is removed, unless something that is under way may use it."""
        kinds = prune.KINDS if spec.all else (prune.LAYERS, prune.IMPORTS, prune.PARTS)

        async def work(job: Job) -> Pruned:
            gone = []
            for kind in kinds:
                async with job.stage(kind):
                    gone.append(await self._prune(job, kind, spec))
            return Pruned(spec.dry_run, gone, sum(one.bytes for one in gone))

        return self._operations.begin("image.prune", "images", work)

    async def _prune(self, job: Job, kind: str, spec: PruneSpec) -> PrunedKind:
        older_than = time.time() - (0.0 if spec.all else self._keep_layers_s)

        def choose() -> prune.Selection:
            nothing = prune.Selection(kind, ())
            return nothing if self._is_used(kind) else prune.select(self._paths, kind, layers_older_than=older_than)

        if self._is_used(kind):
            job.note(f"{kind}: left, as {_LEAVES[kind]}")
            return PrunedKind(kind, left=_LEAVES[kind])
        if spec.dry_run:
            return await in_thread(prune.measure, choose())
        return await prune.take_away(self._paths, choose, kind)

    def _is_used(self, kind: str) -> bool:
        """Whether an operation that is under way may use, or is about to use, something of a kind."""
        others = {operation.kind for operation in self._operations.under_way()} - {"image.prune"}
        if kind == prune.PARTS:
            return any(other.startswith(("vm.", "image.")) for other in others)
        if kind == prune.LAYERS:
            return "image.build" in others
        if kind == prune.IMPORTS:
            return "image.import" in others
        return any(other.startswith(("image.", "engine.")) for other in others - _NO_CACHE)

    async def sweep(self) -> None:
        """Settle what a killed daemon left half-renamed or half-removed; at start only, before anything else looks."""
        await renaming.sweep(self._paths)
        await prune.sweep(self._paths)


def image_target(name: str) -> str:
    """What an operation that makes, changes or removes an image holds."""
    return f"image/{name}"


def _unknown(name: str) -> dict[str, object]:
    """What is told of an image whose image.json cannot be read."""
    words = dict.fromkeys(("distro", "release", "kernel_release", "boot_args", "created_at", "origin"), "")
    return {**words, "name": name, "parts": {}, "packages": 0, "needs_acpi": False}
