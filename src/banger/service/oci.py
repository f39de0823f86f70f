"""Images out of OCI layouts and docker archives: unpacked, completed, given a kernel, and finished like all others."""

import re
from datetime import UTC, datetime
from pathlib import Path

from banger.images import catalog
from banger.images.confine import require_root
from banger.images.draft import Draft
from banger.images.locks import image_in_use
from banger.images.oci_packages import compile_python, install, lacking
from banger.images.oci_root import make_root, measure, take_modules
from banger.images.oci_tree import PYTHON_LEAST, Tree
from banger.images.oci_unpack import Unpacked, Unpacker, check_tools
from banger.jobs.operations import Job, Operations
from banger.model.errors import CommandFailed, Conflict, Invalid, NotFound, Timeout, Unsupported
from banger.model.image import Image, ImportSpec, OciOptions
from banger.model.names import NAME_MAX, validate_name
from banger.model.operation import Operation
from banger.paths import Paths
from banger.service.admission import Admission
from banger.service.bundle import RuntimeBundle
from banger.service.drafts import Drafts
from banger.service.guest_seed import guest_seed
from banger.system.files import in_thread

INSTALL_S, KERNEL_S, SETTLE_S, MAKE_S = 7200.0, 900.0, 900.0, 1800.0
_KERNEL_PARTS = ("kernel", "bzimage", "initramfs", "config")
_ENDINGS = re.compile(r"(\.(tar|tgz|gz|oci|docker|image|zip))+$")


class OciImports:
    """Imports of OCI layouts and docker archives; none is larger than `largest` bytes."""

    def __init__(
        self,
        paths: Paths,
        operations: Operations,
        bundle: RuntimeBundle,
        drafts: Drafts,
        admission: Admission,
        largest: int,
    ) -> None:
        self._paths = paths
        self._operations = operations
        self._bundle = bundle
        self._drafts = drafts
        self._room = admission.room
        self._largest = largest

    def import_image(self, spec: ImportSpec) -> Operation:
        """Begin `image.import`. Raises `HostRequirement`, `Conflict` (the name is taken), `NotFound`, `Invalid`."""
        if spec.check:
            raise Unsupported(
                "only banger's own archives can be looked at without being imported", hint="leave out --check"
            )
        options = spec.oci or OciOptions()
        require_root()
        check_tools()
        path = Path(spec.path).resolve()
        name = validate_name(spec.name or default_name(path, options.tag), "image name")
        try:
            catalog.check_free(self._paths, name)
        except Conflict as error:
            raise Conflict(error.message, hint="give it another name: --name NEW") from error
        base = self._base(options.kernel_from)
        target = f"image/{name}"
        self._operations.check_free(target)

        async def work(job: Job) -> Image:
            async with catalog.workspace(self._paths) as directory:
                return await self._make(job, name, path, base, options, directory)

        return self._operations.begin("image.import", target, work)

    def _base(self, name: str | None) -> Image:
        """The image whose kernel is taken. Raises `NotFound`, `Invalid`."""
        if name is not None:
            return catalog.find_image(self._paths, name)
        found = [image for image in catalog.list_images(self._paths) if image.managed and image.distro == "debian"]
        if not found:
            raise NotFound(
                "an OCI image has no kernel, and there is no Debian image that could lend one",
                hint="make one with `banger image bootstrap debian`, or name an image with --kernel-from",
            )
        return max(found, key=lambda image: image.created_at)

    async def _make(self, job: Job, name: str, path: Path, base: Image, options: OciOptions, work: Path) -> Image:
        limit = min(options.size_bytes or self._largest, self._largest)
        unpacker = Unpacker(path, work, tag=options.tag, limit=limit, room=self._room, progress=job)
        unpacked = await unpacker.run()
        tree = Tree(unpacked.tree)
        await in_thread(measure, tree.root)  # all that goes through it later needs it to be not too deep
        await in_thread(tree.make_directories)
        release = tree.release()
        job.note(f"it is {release.name}")
        await self._complete(job, tree, options)
        draft = Draft(work / "image", _describe(name, unpacked, tree, base))
        draft.directory.mkdir(mode=0o700)
        await self._lend_kernel(job, tree, base, draft)
        await self._settle(job, tree, unpacked, run=options.install)
        async with job.stage("filesystem", deadline_s=MAKE_S):
            await make_root(tree, draft.files.root, options.size_bytes, self._room)
        return await self._drafts.finish(job, draft)

    async def _complete(self, job: Job, tree: Tree, options: OciOptions) -> None:
        """Install what is missing, or say it."""
        packages = await in_thread(lacking, tree) if tree.has_apt() else []
        if packages and options.install:
            async with job.stage("install packages", deadline_s=INSTALL_S):
                job.note(f"missing: {', '.join(packages)}")
                await install(tree, packages, job)
        check_complete(tree, by_apt=bool(packages) and not options.install)
        for loss in tree.wanted().values():
            job.note(f"there is no {loss}")

    async def _lend_kernel(self, job: Job, tree: Tree, base: Image, draft: Draft) -> None:
        root = catalog.part_path(self._paths, base, "root")
        with image_in_use(root, base.name):
            await self._drafts.copy_base(job, base, draft.directory, _KERNEL_PARTS)
            async with job.stage("modules", deadline_s=KERNEL_S):
                await take_modules(base, root, tree, draft.directory.parent, self._room)
                job.note(f"kernel {base.kernel_release} of the image {base.name}")

    async def _settle(self, job: Job, tree: Tree, unpacked: Unpacked, *, run: bool) -> None:
        async with job.stage("seed", deadline_s=SETTLE_S):
            key = await self._bundle.key()
            seed = guest_seed(key.line, self._bundle.agent(), opencode=False)
            await in_thread(tree.settle, seed)
            if unpacked.config.config is not None:
                for note in await in_thread(tree.keep_config, unpacked.config.config, unpacked.chosen):
                    job.note(note)
            if run:
                try:
                    await compile_python(tree, seed.compile_dirs)
                except (CommandFailed, Timeout) as error:  # the machine's first start is a little slower then
                    job.note(f"the agent is not compiled: {error.message}")


def check_complete(tree: Tree, *, by_apt: bool) -> None:
    """Raise `Unsupported` when a machine cannot do without something that the tree has not.

    by_apt  its own apt could install that, and was not to
    """
    missing = tree.missing()
    if not missing:
        return
    release = tree.release()
    lacks = ", ".join(missing.values())
    if by_apt:
        hint = f"leave out --no-install, or install {', '.join(missing)} before the image is saved"
    elif tree.has_apt():
        hint = f"use a newer release: banger needs Python {PYTHON_LEAST[0]}.{PYTHON_LEAST[1]} and systemd"
    else:
        hint = "only in images that have apt is what is missing installed; in others, do so before the image is saved"
    raise Unsupported(f"no machine can run {release.name}: it lacks {lacks}", hint=hint)


def default_name(path: Path, tag: str) -> str:
    """A name for the image: of `ghcr.io/me/tools:1.2` it is `tools-1-2`; without such a tag, the file's.

    Raises `Invalid` when nothing is left of it.
    """
    word = tag.rpartition("/")[2] if "/" in tag or ":" in tag.removeprefix("sha256:") else path.name
    word = _ENDINGS.sub("", word.removesuffix(":latest").lower())
    name = re.sub(r"[^a-z0-9]+", "-", word)[:NAME_MAX].strip("-")
    if not name:
        raise Invalid(f"no name can be made of {path.name!r}", hint="give one with --name")
    return name


def _describe(name: str, unpacked: Unpacked, tree: Tree, base: Image) -> Image:
    release, chosen = tree.release(), unpacked.chosen
    return Image(
        name=name,
        distro=release.id or "linux",
        release=release.version,
        kernel_release=base.kernel_release,
        boot_args=base.boot_args,
        parts={},
        packages=0,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        origin=f"OCI image {chosen.name or '(no tag)'}, digest {chosen.digest}, kernel of the image {base.name}",
        needs_acpi=base.needs_acpi,
        init_version=base.init_version,
        memory_mib=base.memory_mib,
    )
