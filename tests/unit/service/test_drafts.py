"""Finishing drafts: from files to an image that can be made machines of."""

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from banger.config import Settings
from banger.images.catalog import find_image, list_images, part_path, workspace
from banger.images.draft import Draft
from banger.images.initramfs import pack
from banger.images.verify import verify_image
from banger.jobs.operations import Job, Operations
from banger.model.errors import Conflict, GuestUnreachable, Invalid
from banger.model.image import INIT_VERSION, WORK_SEED, Image
from banger.model.operation import Operation, OperationState
from banger.paths import Paths
from banger.service.appliance import Appliance
from banger.service.bundle import RuntimeBundle
from banger.service.drafts import Drafts
from banger.service.vms import EngineChoice
from banger.store.db import open_database
from banger.store.operations import OperationStore
from banger.system.ext4 import MIB, make_ext4
from tests.unit.images.recorder import Recorder
from tests.unit.images.tiny import OTHER, keys_in, make_image, needs_e2fsprogs, read, room

pytestmark = needs_e2fsprogs

DPKG = """Package: zlib1g
Status: install ok installed
Architecture: amd64
Version: 1:1.2.13

Package: gone
Status: deinstall ok config-files
Architecture: amd64
Version: 1

Package: bash
Status: install ok installed
Architecture: amd64
Version: 5.2
"""
APK = "C:Q1x=\nP:musl\nV:1.2.4-r2\nA:x86_64\n\nP:busybox\nV:1.36.1-r5\nA:x86_64\n"
BASH, ZLIB = (
    {"name": "bash", "version": "5.2", "arch": "amd64"},
    {"name": "zlib1g", "version": "1:1.2.13", "arch": "amd64"},
)
BUSYBOX = {"name": "busybox", "version": "1.36.1-r5", "arch": "x86_64"}
MUSL = {"name": "musl", "version": "1.2.4-r2", "arch": "x86_64"}


def appliance(paths: Paths) -> Appliance:
    return Appliance(paths, Settings(), EngineChoice(paths), room)


class World:
    """As much of a daemon as finishing drafts needs."""

    def __init__(self, directory: Path, operations: Operations) -> None:
        self.paths = Paths(directory / "state", directory / "run", directory / "cache")
        self.paths.runtime.mkdir()
        self.operations = operations
        self.bundle = RuntimeBundle(self.paths, Settings())
        self.drafts = Drafts(self.paths, self.bundle, appliance(self.paths), room)

    async def operation(self, work: Callable[[Job], Awaitable[object]]) -> Operation:
        return await self.operations.wait(self.operations.begin("image.test", "image/test", work).id)

    async def made(
        self, tree: Path, *, parents: tuple[str, ...] = (), publish: bool = True, boot: bool = False
    ) -> Operation:
        """An operation that makes the image `new` of a tree."""

        async def work(job: Job) -> Image:
            async with workspace(self.paths) as space:
                directory = space / "image"
                directory.mkdir()
                draft = Draft(directory, _image("new", parents))
                await make_ext4(draft.files.root, 16 * MIB, label="tiny", tree=tree)
                draft.files.kernel.write_bytes(b"kernel")
                draft.files.initramfs.write_bytes(pack(b"box", []))
                return await self.drafts.finish(job, draft, boot=boot, publish=publish)

        return await self.operation(work)


def _image(name: str, parents: tuple[str, ...]) -> Image:
    return Image(
        name=name, distro="debian", release="12", kernel_release="6", boot_args="rootfstype=ext4", parts={},
        packages=0, created_at="2026-01-01T00:00:00+00:00", origin="test", needs_acpi=True, init_version=INIT_VERSION,
        parents=parents,
    )  # fmt: skip


def play(directory: Path, scene: Callable[[World], Awaitable[None]]) -> None:
    async def main() -> None:
        with contextlib.closing(open_database(directory / "db")) as database:
            world = World(directory, Operations(OperationStore(database)))
            await world.bundle.open()
            async with asyncio.timeout(60):
                await scene(world)
                await world.operations.close()
            assert list(world.paths.images.glob(".*")) == []

    asyncio.run(main())


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    (root / "root").mkdir(parents=True)
    (root / "root/file").write_text("mine")
    (root / "var/lib/dpkg").mkdir(parents=True)
    (root / "var/lib/dpkg/status").write_text(DPKG)
    return root


def test_a_draft_becomes_an_image_with_its_packages_and_a_seed_that_lets_us_in(tmp_path: Path, tree: Path) -> None:
    async def scene(world: World) -> None:
        operation = await world.made(tree)
        assert operation.error is None
        image = find_image(world.paths, "new")
        assert (await world.bundle.key()).fingerprint == image.seed_key
        await verify_image(world.paths, "new", Recorder())
        assert json.loads(part_path(world.paths, image, "manifest").read_text()) == [BASH, ZLIB]
        assert image.packages == 2
        seed = part_path(world.paths, image, WORK_SEED)
        assert keys_in(seed) == [(await world.bundle.key()).line]
        assert read(seed, "cat /file") == "mine"

    play(tmp_path, scene)


def test_packages_of_apk_are_listed_too(tmp_path: Path, tree: Path) -> None:
    (tree / "var/lib/dpkg/status").unlink()
    (tree / "lib/apk/db").mkdir(parents=True)
    (tree / "lib/apk/db/installed").write_text(APK)

    async def scene(world: World) -> None:
        assert (await world.made(tree)).error is None
        image = find_image(world.paths, "new")
        assert json.loads(part_path(world.paths, image, "manifest").read_text()) == [BUSYBOX, MUSL]

    play(tmp_path, scene)


def test_a_root_without_a_package_database_is_an_image_without_a_manifest(tmp_path: Path, tree: Path) -> None:
    (tree / "var/lib/dpkg/status").unlink()

    async def scene(world: World) -> None:
        assert (await world.made(tree)).error is None
        image = find_image(world.paths, "new")
        assert "manifest" not in image.parts
        assert image.packages == 0

    play(tmp_path, scene)


def test_what_the_parent_has_beside_its_package_database_is_listed_of_the_child(tmp_path: Path, tree: Path) -> None:
    kernel = {"name": "linux-image", "version": "6", "arch": "amd64"}

    async def scene(world: World) -> None:
        assert (await world.made(tree)).error is None
        where = world.paths.image("parent")
        world.paths.image("new").directory.rename(where.directory)
        where.metadata.chmod(0o600)
        text = where.manifest.read_text()
        where.manifest.chmod(0o600)
        where.manifest.write_text(json.dumps([*json.loads(text), kernel]))
        document = json.loads(where.metadata.read_text())
        document["name"] = "parent"
        document["parts"]["manifest"]["bytes"] = where.manifest.stat().st_size
        where.metadata.write_text(json.dumps(document))
        (tree / "var/lib/dpkg/status").write_text(DPKG.replace("5.2", "5.3"))
        assert (await world.made(tree, parents=("parent",))).error is None
        manifest = part_path(world.paths, find_image(world.paths, "new"), "manifest")
        assert json.loads(manifest.read_text()) == [{**BASH, "version": "5.3"}, kernel, ZLIB]

    play(tmp_path, scene)


def test_what_cannot_be_an_image_leaves_none(tmp_path: Path, tree: Path) -> None:
    async def scene(world: World) -> None:
        async def work(job: Job) -> Image:
            async with workspace(world.paths) as space:
                draft = Draft(space, _image("new", ()))
                draft.files.root.write_bytes(bytes(MIB))
                return await world.drafts.finish(job, draft, boot=False)

        operation = await world.operation(work)
        assert operation.state is OperationState.FAILED
        assert operation.error is not None
        assert operation.error["code"] == Invalid.code
        assert (await world.made(tree)).error is None
        again = await world.made(tree)
        assert again.error is not None
        assert again.error["code"] == Conflict.code
        assert [image.name for image in list_images(world.paths)] == ["new"]

    play(tmp_path, scene)


def test_an_unpublished_one_is_described_and_left_to_the_caller(tmp_path: Path, tree: Path) -> None:
    async def scene(world: World) -> None:
        operation = await world.made(tree, publish=False)
        assert operation.error is None
        assert list_images(world.paths) == []
        assert set(operation.result["parts"]) == {"root", "kernel", "initramfs", "manifest", WORK_SEED}

    play(tmp_path, scene)


def test_parts_of_a_base_are_copied_under_their_usual_names(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        image = await asyncio.to_thread(make_image, world.paths, "base", OTHER)
        target = tmp_path / "copy"
        target.mkdir()
        await world.operation(lambda job: world.drafts.copy_base(job, image, target, ("root", "kernel", "bzimage")))
        assert sorted(path.name for path in target.iterdir()) == ["root.ext4", "vmlinux"]
        assert (target / "root.ext4").read_bytes() == part_path(world.paths, image, "root").read_bytes()

    play(tmp_path, scene)


def test_one_that_does_not_boot_is_not_published(tmp_path: Path, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    async def boot(self: Appliance, job: Job, image: Image, directory: Path) -> None:
        tried.append((image.name, set(image.parts), (directory / "root.ext4").stat().st_mode & 0o222))
        if len(tried) == 1:
            raise GuestUnreachable("it does not boot")

    monkeypatch.setattr(Appliance, "boot", boot)

    async def scene(world: World) -> None:
        operation = await world.made(tree, boot=True)
        assert operation.error is not None
        assert operation.error["message"] == "it does not boot"
        assert list_images(world.paths) == []
        assert (await world.made(tree, boot=True)).error is None
        assert tried[1] == ("new", {"root", "kernel", "initramfs", "manifest", WORK_SEED}, 0)

    play(tmp_path, scene)
