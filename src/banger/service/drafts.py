"""From the files of an image to an image: what all ways of making one share."""

from collections.abc import Iterable
from pathlib import Path

from banger.images.catalog import find_image, part_path, publish
from banger.images.draft import Draft, describe, usual_files
from banger.images.homes import ROOT_HOME, Room
from banger.images.locks import image_in_use
from banger.images.manifest import Package, in_order, read_manifest, read_packages, write_manifest
from banger.images.work_seed import remake_work_seed
from banger.jobs.operations import Job
from banger.model.errors import Invalid, NotFound
from banger.model.image import Image
from banger.paths import ImagePaths, Paths
from banger.service.appliance import Appliance
from banger.service.bundle import RuntimeBundle
from banger.storage.copies import copy_disk
from banger.system.ext4 import check_ext4
from banger.system.files import in_thread

CHECK_S, READ_S, SEED_S, DIGESTS_S = 900.0, 600.0, 900.0, 900.0


class Drafts:
    """Finishes drafts. Each method is a part of an operation; the draft's workspace goes with that."""

    def __init__(self, paths: Paths, bundle: RuntimeBundle, appliance: Appliance, room: Room) -> None:
        self._paths = paths
        self._bundle = bundle
        self._appliance = appliance
        self._room = room

    async def copy_base(self, job: Job, image: Image, directory: Path, roles: Iterable[str]) -> None:
        """Copy these parts of an image into a draft's directory, under their usual names; those it has not are left
        out. O(1) where the filesystem shares blocks; else with progress, and cancelling ends it.

        Nobody can delete the image meanwhile. Raises `NotFound`, `Conflict` (it is being deleted), `HostRequirement`.
        """
        targets = usual_files(ImagePaths(directory))
        async with job.stage(f"copy the image {image.name}"):
            with image_in_use(part_path(self._paths, image, "root"), image.name):
                for role in roles:
                    if role in image.parts:
                        await copy_disk(part_path(self._paths, image, role), targets[role], job, self._room)
                        targets[role].chmod(0o644)

    async def finish(
        self,
        job: Job,
        draft: Draft,
        *,
        script: bytes = b"",
        tree: Path | None = None,
        boot: bool = True,
        publish: bool = True,
    ) -> Image:
        """Make an image of the draft: edit its root, check it, list its packages, make its work seed, measure all,
        boot it once, and give it its name. Without `publish` the last is left to the caller.

        script  for busybox's sh, run over the root while nothing of it runs: see `Appliance.edit`
        tree    a directory that the script finds read-only at $TREE

        Raises `Invalid` (the filesystem has errors), `Conflict` (the name is taken), `GuestUnreachable` (it does not
        boot), `CommandFailed`, `Timeout`, and like `Appliance.edit`.
        """
        files = draft.files
        if script:
            await self._appliance.edit(job, draft.image, draft.directory, script, tree)
        async with job.stage("check the filesystem", deadline_s=CHECK_S):
            files.root.chmod(0o644)  # programs without privileges read it
            await check_ext4(files.root)
        async with job.stage("packages", deadline_s=READ_S):
            packages = await self._packages(job, draft)
        seed_key = await self._work_seed(job, draft)
        async with job.stage("digests", deadline_s=DIGESTS_S):
            image = await in_thread(describe, draft, packages=packages, seed_key=seed_key)
        if boot:
            await self._appliance.boot(job, image, draft.directory)
        if publish:
            await self.publish(job, image, draft.directory)
        return image

    async def publish(self, job: Job, image: Image, directory: Path) -> None:
        """Give a finished image its name, at once and durably. Raises `Conflict` when it is taken."""
        async with job.stage("publish", deadline_s=DIGESTS_S):
            await in_thread(publish, self._paths, image, directory)

    async def _packages(self, job: Job, draft: Draft) -> int:
        """Write the manifest when there is none; how many packages it lists."""
        manifest = draft.files.manifest
        if manifest.exists():
            return len(await in_thread(read_manifest, manifest))
        found = await read_packages(draft.files.root, draft.directory)
        if found is None:
            job.note("no package database is known in it: there is no list of its packages")
            return 0
        packages = in_order([*found, *await self._besides(draft), *draft.besides])
        await in_thread(write_manifest, manifest, packages)
        return len(packages)

    async def _besides(self, draft: Draft) -> list[Package]:
        """What the image that it was made of has beside what its package database knows, such as its kernel."""
        if not draft.image.parents:
            return []
        try:
            parent = find_image(self._paths, draft.image.parents[0])
            with image_in_use(part_path(self._paths, parent, "root"), parent.name):
                listed = await in_thread(read_manifest, part_path(self._paths, parent, "manifest"))
                known = await read_packages(part_path(self._paths, parent, "root"), draft.directory) or []
        except (NotFound, Invalid, KeyError):
            return []
        names = {(package["name"], package["arch"]) for package in (*known, *draft.besides)}
        return [package for package in listed if (package["name"], package["arch"]) not in names]

    async def _work_seed(self, job: Job, draft: Draft) -> str:
        """Make the work seed when there is none; the fingerprint of the key that it lets in."""
        seed = draft.files.work_seed
        if seed.exists():
            return draft.image.seed_key
        key = await self._bundle.key()
        source, inside = draft.home or (draft.files.root, ROOT_HOME)
        async with job.stage("work seed", deadline_s=SEED_S):
            try:
                await remake_work_seed(source, inside, seed, self._room, key=key, old=draft.image.seed_key)
            except Invalid as error:
                if draft.home is not None:
                    raise  # it was asked for
                job.note(f"{error.message}; there is no work seed")
                seed.unlink(missing_ok=True)
                return ""
            await check_ext4(seed)
        return key.fingerprint
