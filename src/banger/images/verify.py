"""Whether an image is what it was when it was made. Reads only, and finds every fault, not just the first."""

import os
import stat
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from banger.images.catalog import damaged_hint, part_changed, part_fault, part_path, read_metadata, workspace
from banger.images.counted import counted
from banger.images.homes import SEED_HOME, home_keys
from banger.model.errors import BangerError, CommandFailed, Invalid, NotFound, Timeout
from banger.model.image import WORK_SEED, Image, Verified
from banger.model.progress import Progress
from banger.paths import Paths
from banger.system.ext4 import check_ext4
from banger.system.files import allocated_bytes, clone_file, copy_sparse, in_thread, sha256_of

_DIGESTS_S, _CHECK_S = 3600.0, 900.0


async def verify_image(paths: Paths, name: str, progress: Progress) -> Verified:
    """Compare parts with their digests, and check the filesystems. What was checked, when nothing is wrong.

    Raises `BangerError` that names every part at fault; details: `faults`, each `part` and `fault`.
    """
    try:
        image = read_metadata(paths.image(name))
    except Invalid as error:
        raise BangerError(error.message, hint=error.hint) from error
    return await _Verification(paths, image, progress).run()


class _Verification:
    """One run over an image."""

    def __init__(self, paths: Paths, image: Image, progress: Progress) -> None:
        self._paths = paths
        self._image = image
        self._progress = progress
        self._faults: list[tuple[str, str]] = []
        self._checked: dict[str, list[str]] = {role: [] for role in image.parts}

    async def run(self) -> Verified:
        image, where = self._image, self._paths.image(self._image.name)
        async with self._progress.stage("digests", deadline_s=_DIGESTS_S):
            parts = image.parts.items()
            there = [role for role, part in parts if self._passes(role, "", part_fault(where, part, image))]
            await self._digests(there)
        async with self._progress.stage("root filesystem", deadline_s=_CHECK_S):
            if "root" in there:
                await self._filesystem("root")
        async with self._progress.stage("work seed", deadline_s=_CHECK_S):
            if WORK_SEED in there:
                await self._filesystem(WORK_SEED)
                await self._seed_key()
            elif WORK_SEED not in image.parts:
                self._progress.note("there is none; the next VM that is made of this image begins to make it")
        if "manifest" not in image.parts:
            self._progress.note("it has no package manifest: nobody wrote down which packages are in it")
        if self._faults:
            state = "is damaged" if image.managed else "is not what was registered"
            raise BangerError(
                f"the image {image.name} {state}: {'; '.join(f'{role}: {what}' for role, what in self._faults)}",
                hint=damaged_hint(image.name, managed=image.managed),
                details={"faults": [{"part": role, "fault": what} for role, what in self._faults]},
            )
        return Verified(image.name, self._checked, image.seed_key)

    def _passes(self, role: str, check: str, fault: str) -> bool:
        """Note the outcome of a check of a part; empty names are for what is too plain to be listed."""
        if fault:
            self._faults.append((role, fault))
            self._progress.note(f"{role}: {fault}")
        elif check:
            self._checked[role].append(check)
        return not fault

    async def _digests(self, roles: list[str]) -> None:
        files = {role: part_path(self._paths, self._image, role) for role in roles}
        total = sum(map(allocated_bytes, files.values()))

        def digests(told: Callable[[int], None]) -> dict[str, str]:
            return {role: sha256_of(file, told) for role, file in files.items()}

        for role, digest in (await counted(digests, self._progress, total)).items():
            self._passes(role, "sha256", self._content_fault(role, same=digest == self._image.parts[role].sha256))

    def _content_fault(self, role: str, *, same: bool) -> str:
        where, part = self._paths.image(self._image.name), self._image.parts[role]
        if not same:
            return f"the content of {part.file} has changed"
        if changed := part_changed(where, part):
            return f"{changed}, and has the same content"
        return ""

    async def _filesystem(self, role: str) -> None:
        try:
            async with self._readable(role) as file:
                await check_ext4(file)
            fault = ""
        except (Invalid, Timeout) as error:
            fault = error.message
        self._passes(role, "filesystem", fault)

    @asynccontextmanager
    async def _readable(self, role: str) -> AsyncIterator[Path]:
        """A part for a program without privileges. What is somebody's and only his to read is not lent but copied."""
        file = part_path(self._paths, self._image, role)
        if os.geteuid() != 0 or not self._image.parts[role].elsewhere or file.stat().st_mode & stat.S_IROTH:
            yield file
            return
        async with workspace(self._paths) as work:
            copy = work / file.name
            if not await in_thread(clone_file, file, copy):
                await in_thread(copy_sparse, file, copy, lambda done, total: True)
            copy.chmod(0o444)
            yield copy

    async def _seed_key(self) -> None:
        """The key that image.json names must be let in; older ones name none."""
        if not (wanted := self._image.seed_key):
            self._progress.note("image.json names no key")
            return
        try:
            found = await home_keys(part_path(self._paths, self._image, WORK_SEED), SEED_HOME, self._paths.runtime)
            fault = "" if wanted in found else f"it does not let in the key {wanted}, which image.json names"
        except (CommandFailed, Invalid, NotFound, Timeout) as error:
            fault = f"its keys cannot be read: {error.message}"
        self._passes(WORK_SEED, "key", fault)
