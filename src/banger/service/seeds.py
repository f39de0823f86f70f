"""What new work disks are cloned from: the image's work seed, made good where there is none, or one for another key."""

import logging
import os
import secrets
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from banger.images.catalog import find_image, part_path, workspace
from banger.images.homes import ROOT_HOME, SEED_HOME, Room
from banger.images.parts import replace_parts
from banger.images.work_seed import remake_work_seed
from banger.jobs.operations import Job, Operations
from banger.model.errors import Busy, Invalid, NotFound
from banger.model.image import WORK_SEED, Image
from banger.model.keys import PublicKey
from banger.model.progress import Progress
from banger.paths import Paths
from banger.service.bundle import RuntimeBundle

MAKE_S = 600.0
log = logging.getLogger(__name__)


class SeedSource(NamedTuple):
    """A work seed to clone. Without the right key in it, the clone must be given that; a temporary one is removed."""

    path: Path
    key_is_right: bool
    temporary: bool


class WorkSeeds:
    """The work seeds of all images."""

    def __init__(self, paths: Paths, bundle: RuntimeBundle, operations: Operations, room: Room) -> None:
        self._paths = paths
        self._bundle = bundle
        self._operations = operations
        self._room = room

    async def seed_for(self, image: Image, directory: Path, progress: Progress) -> SeedSource:
        """The image's seed as it is now, at once; for an image that has none one is made in `directory`, in a stage.

        Call it outside a stage, and clone what it returns without delay. Raises `Invalid`, `CommandFailed`, `Timeout`,
        `HostRequirement` (a full disk) when none can be made.
        """
        key = await self._bundle.key()
        image = find_image(self._paths, image.name)
        if WORK_SEED in image.parts:
            right = image.seed_key == key.fingerprint
            return SeedSource(part_path(self._paths, image, WORK_SEED), key_is_right=right, temporary=False)
        target = directory / f".work-seed-{secrets.token_hex(4)}.ext4"
        with ExitStack() as on_failure:
            on_failure.callback(target.unlink, missing_ok=True)
            async with progress.stage("work seed", deadline_s=MAKE_S):
                await self._make(image, target, key)
            on_failure.pop_all()
        return SeedSource(target, key_is_right=True, temporary=True)

    async def _make(self, image: Image, target: Path, key: PublicKey) -> None:
        role, inside = (WORK_SEED, SEED_HOME) if WORK_SEED in image.parts else ("root", ROOT_HOME)
        source = part_path(self._paths, image, role)
        await remake_work_seed(source, inside, target, self._room, key=key, old=image.seed_key)

    def refresh_later(self, name: str) -> None:
        """Begin `image.refresh` when the image has no seed with the present key, unless that is under way.

        Never fails: what is wrong is in the log, and the next call tries again.
        """
        try:
            image = find_image(self._paths, name)
            if self._is_fresh(image, self._bundle.fingerprint()):
                return
            if not os.access(self._paths.image(name).directory, os.W_OK):
                log.info("the image %s keeps its work seed: its directory cannot be written", name)
                return
            self._operations.begin("image.refresh", f"image/{name}", lambda job: self._refresh(job, name))
        except (NotFound, Invalid, Busy, OSError) as error:
            log.info("the work seed of the image %s is not renewed now: %s", name, error)

    def _is_fresh(self, image: Image, fingerprint: str) -> bool:
        return WORK_SEED in image.parts and image.seed_key == fingerprint

    async def _refresh(self, job: Job, name: str) -> Image:
        key, image = await self._bundle.key(), find_image(self._paths, name)
        if self._is_fresh(image, key.fingerprint):
            return image
        async with workspace(self._paths) as work:
            seed = work / "work-seed.ext4"
            async with job.stage("work seed", deadline_s=MAKE_S):
                await self._make(image, seed, key)
            async with job.stage("publish", deadline_s=MAKE_S):
                return await replace_parts(self._paths, image, {WORK_SEED: seed}, seed_key=key.fingerprint)
