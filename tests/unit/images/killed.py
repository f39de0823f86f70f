"""Run as a program: change images again and again, each time killed at a later step, and start afresh after it.

`killed.py ACTION DIRECTORY` kills at every step; with numbers behind, the action at the first of them and then the
start at the second, pair by pair. It prints how often it killed, and fails when an image is lost, half or worse than
it was.
"""

import asyncio
import itertools
import os
import shutil
import sys
from pathlib import Path

from banger.images import catalog, parts, renaming
from banger.images.catalog import find_image, list_images, part_path
from banger.images.parts import bring_up_to_date, replace_parts
from banger.model.image import IMAGE_FORMAT, INIT_VERSION, WORK_SEED, Image
from banger.paths import Paths
from banger.system.files import sha256_of
from tests.unit.images.older import make_older, publish_small
from tests.unit.storage.killed import killed

NEW_SEED = b"new seed"


class Place:
    """Images, one of which is changed: `base`, of an earlier version for a repair, and two that were made of it."""

    def __init__(self, root: Path, action: str) -> None:
        shutil.rmtree(root, ignore_errors=True)
        self.action = action
        self.paths = Paths(root / "s", root / "r", root / "c")
        if action == "repair":
            make_older(self.paths, "base", "no manifest", helper="vsock-ping")
        else:
            publish_small(self.paths, "base")
            publish_small(self.paths, "child", parents=("base",))
            publish_small(self.paths, "grandchild", parents=("child", "base"))
        self.before = {image.name: image for image in list_images(self.paths)}
        self.document = self.paths.image("base").metadata.read_bytes()

    def act(self) -> None:
        asyncio.run(self._act())

    async def _act(self) -> None:
        if self.action == "repair":
            image = await bring_up_to_date(self.paths, find_image(self.paths, "base"))
            async with catalog.workspace(self.paths) as work:
                seed = work / "work-seed.ext4"
                seed.write_bytes(NEW_SEED)
                await replace_parts(self.paths, image, {WORK_SEED: seed}, seed_key="SHA256:new")
        elif self.action == "rename":
            await renaming.rename_image(self.paths, "base", "other")
        else:
            await catalog.delete_image(self.paths, "base")

    def start(self) -> None:
        """What the daemon does at its start."""

        async def settle() -> None:
            await renaming.sweep(self.paths)
            await catalog.sweep(self.paths)
            parts.sweep_parts(self.paths)

        asyncio.run(settle())

    def check(self, *, done: bool) -> None:
        found = {image.name: image for image in list_images(self.paths)}
        assert {path.name for path in self.paths.images.iterdir()} == set(found), "leftovers, or a damaged image"
        for image in found.values():
            self._check_files(image)
        getattr(self, f"_check_{self.action}")(found, done)

    def _check_files(self, image: Image) -> None:
        where = self.paths.image(image.name)
        wanted = {part.file for part in image.parts.values()} | {where.metadata.name}
        assert {path.name for path in where.directory.iterdir()} - {where.lock.name} == wanted
        for role, part in image.parts.items():
            assert sha256_of(part_path(self.paths, image, role)) == part.sha256

    def _check_repair(self, found: dict[str, Image], done: bool) -> None:
        image, before = found["base"], self.before["base"]
        if image.format != IMAGE_FORMAT:
            assert not done
            assert self.paths.image("base").metadata.read_bytes() == self.document
            return
        for role in ("root", "kernel", "agent"):
            assert image.parts[role] == before.parts[role]
        assert image.init_version == INIT_VERSION
        seeded = WORK_SEED in image.parts
        assert seeded or not done
        assert image.seed_key == ("SHA256:new" if seeded else "")

    def _check_rename(self, found: dict[str, Image], done: bool) -> None:
        name = "other" if "other" in found else "base"
        assert name == "other" or not done
        assert set(found) == {name, "child", "grandchild"}
        assert found["child"].parents == (name,)
        assert found["grandchild"].parents == ("child", name)
        assert found[name].parts == self.before["base"].parts

    def _check_delete(self, found: dict[str, Image], done: bool) -> None:
        assert set(found) in ({"child", "grandchild"}, {"base", "child", "grandchild"})
        assert "base" not in found or not done
        assert found["child"] == self.before["child"]


def everywhere(root: Path, action: str) -> int:
    for step in itertools.count(1):
        place = Place(root, action)
        alive = not killed(place.act, step)
        place.start()
        place.check(done=alive)
        if alive:
            return step - 1
        if action == "repair":
            place.act()
            place.start()
            place.check(done=True)
    raise AssertionError


def also_starting(root: Path, action: str, pairs: list[tuple[int, int]]) -> int:
    kills = 0
    for step, then in pairs:
        place = Place(root, action)
        kills += killed(place.act, step) + killed(place.start, then)
        place.start()
        place.check(done=False)
    return kills


def main() -> None:
    os.fsync = lambda fd: None  # what a killed process has written is there for the next one
    action, root, numbers = sys.argv[1], Path(sys.argv[2]), [int(word) for word in sys.argv[3:]]
    pairs = list(zip(numbers[::2], numbers[1::2], strict=True))
    print(also_starting(root, action, pairs) if pairs else everywhere(root, action))


if __name__ == "__main__":
    main()
