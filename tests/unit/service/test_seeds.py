"""Work seeds at create: always one with the right key, or to be given it; renewed later, once, whatever happens."""

import asyncio
import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from banger.config import Settings
from banger.images.catalog import find_image, part_path, sweep
from banger.images.parts import sweep_parts
from banger.images.verify import verify_image
from banger.jobs.operations import Operations
from banger.model.image import WORK_SEED, Image
from banger.model.keys import PublicKey
from banger.model.operation import Operation, OperationState
from banger.paths import Paths
from banger.service.bundle import RuntimeBundle
from banger.service.seeds import WorkSeeds
from banger.store.db import open_database
from banger.store.operations import OperationStore
from banger.system.ext4 import check_ext4
from tests.unit.images.recorder import Recorder
from tests.unit.images.tiny import OTHER, key, keys_in, make_image, needs_e2fsprogs, read, room

pytestmark = needs_e2fsprogs
OLD = key("O")
ROOT = Path(__file__).parents[3]


class World:
    """A daemon's objects, as far as seeds need them, and its key."""

    def __init__(self, directory: Path, operations: Operations) -> None:
        self.paths = Paths(directory / "state", directory / "run", directory / "cache")
        self.paths.runtime.mkdir(exist_ok=True)
        self.operations = operations
        self.bundle = RuntimeBundle(self.paths, Settings())
        self.seeds = WorkSeeds(self.paths, self.bundle, operations, room)
        self.vm = directory / "vm"
        self.vm.mkdir(exist_ok=True)

    @property
    def image(self) -> Image:
        return find_image(self.paths, "debian")

    @property
    def seed(self) -> Path:
        return part_path(self.paths, self.image, WORK_SEED)

    async def refreshed(self) -> list[Operation]:
        """Refreshes so far, the newest first, once none is under way."""
        found = [operation for operation in self.operations.all(100) if operation.kind == "image.refresh"]
        return [await self.operations.wait(operation.id) for operation in found]


@pytest.fixture
def database(tmp_path: Path) -> Iterator[OperationStore]:
    with contextlib.closing(open_database(tmp_path / "db")) as database:
        yield OperationStore(database)


def play(database: OperationStore, directory: Path, scene: Callable[[World, PublicKey], Awaitable[None]]) -> None:
    async def main() -> None:
        world = World(directory, Operations(database))
        await world.bundle.open()
        async with asyncio.timeout(60):
            await scene(world, await world.bundle.key())
            await world.operations.close()

    asyncio.run(main())


def _image(directory: Path, lines: str, *, seed_key: str = "", older: bool = False) -> None:
    paths = Paths(directory / "state", directory / "run", directory / "cache")
    make_image(paths, "debian", lines, seed_key=seed_key, older=older)


def test_an_image_of_another_key_gives_its_seed_at_once_and_is_renewed_afterwards(
    tmp_path: Path, database: OperationStore
) -> None:
    _image(tmp_path, f"{OTHER}\n{OLD.line}\n", seed_key=OLD.fingerprint)

    async def scene(world: World, ours: PublicKey) -> None:
        recorder = Recorder()
        source = await world.seeds.seed_for(world.image, world.vm, recorder)
        assert source == (world.seed, False, False)
        assert recorder.stages == []
        world.seeds.refresh_later("debian")
        (done,) = await world.refreshed()
        assert done.state is OperationState.DONE
        assert [stage.name for stage in done.stages] == ["work seed", "publish"]
        assert world.image.seed_key == ours.fingerprint
        assert keys_in(world.seed) == [ours.line, OTHER]
        await verify_image(world.paths, "debian", recorder)
        assert source.path.exists(), "somebody may be about to clone it"
        assert await world.seeds.seed_for(world.image, world.vm, recorder) == (world.seed, True, False)
        world.seeds.refresh_later("debian")
        assert len(await world.refreshed()) == 1
        sweep_parts(world.paths)
        assert not source.path.exists()
        assert world.seed.exists()

    play(database, tmp_path, scene)


def test_a_second_change_of_the_key_leaves_neither_of_the_old_ones(tmp_path: Path, database: OperationStore) -> None:
    first = key("A", "a person's own")
    _image(tmp_path, f"{first.line}\n{OTHER}\n", seed_key=first.fingerprint)

    async def scene(world: World, ours: PublicKey) -> None:
        world.seeds.refresh_later("debian")
        await world.refreshed()
        (world.paths.bundle / "ssh/id_ed25519").unlink()
        (world.paths.bundle / "ssh/id_ed25519.pub").unlink()
        new = await world.bundle.key()
        assert new.fingerprint != ours.fingerprint
        world.seeds.refresh_later("debian")
        await world.refreshed()
        assert keys_in(world.seed) == [new.line, OTHER]

    play(database, tmp_path, scene)


def test_an_older_image_gives_a_seed_with_our_key_and_gets_one_of_its_own_later(
    tmp_path: Path, database: OperationStore
) -> None:
    _image(tmp_path, f"{OLD.line}\n{OTHER}\n", older=True)

    async def scene(world: World, ours: PublicKey) -> None:
        recorder = Recorder()
        source = await world.seeds.seed_for(world.image, world.vm, recorder)
        assert (source.key_is_right, source.temporary, recorder.stages) == (True, True, ["work seed"])
        assert list(world.vm.iterdir()) == [source.path]
        assert source.path.name.startswith(".")
        await check_ext4(source.path)
        assert keys_in(source.path) == [ours.line, OTHER]
        assert read(source.path, "cat /.bashrc") == "# the image's\n"
        assert "PATH=" in read(source.path, "cat /.profile")
        assert WORK_SEED not in world.image.parts
        world.seeds.refresh_later("debian")
        await world.refreshed()
        assert await world.seeds.seed_for(world.image, world.vm, recorder) == (world.seed, True, False)
        assert keys_in(world.seed) == [ours.line, OTHER]
        await verify_image(world.paths, "debian", recorder)

    play(database, tmp_path, scene)


def test_an_image_whose_metadata_names_no_key_is_renewed(tmp_path: Path, database: OperationStore) -> None:
    _image(tmp_path, f"{OLD.line}\n")

    async def scene(world: World, ours: PublicKey) -> None:
        assert not (await world.seeds.seed_for(world.image, world.vm, Recorder())).key_is_right
        world.seeds.refresh_later("debian")
        await world.refreshed()
        assert (world.image.seed_key, keys_in(world.seed)) == (ours.fingerprint, [ours.line])

    play(database, tmp_path, scene)


def test_a_seed_that_somebody_removed_is_made_again(tmp_path: Path, database: OperationStore) -> None:
    _image(tmp_path, f"{OLD.line}\n", seed_key=OLD.fingerprint)

    async def scene(world: World, ours: PublicKey) -> None:
        world.seed.unlink()
        assert (await world.seeds.seed_for(world.image, world.vm, Recorder())).temporary
        world.seeds.refresh_later("debian")
        await world.refreshed()
        assert keys_in(world.seed) == [ours.line]

    play(database, tmp_path, scene)


def test_ten_creates_that_end_at_once_begin_one_refresh(tmp_path: Path, database: OperationStore) -> None:
    _image(tmp_path, OLD.line, older=True)

    async def scene(world: World, ours: PublicKey) -> None:
        image = world.image

        async def create(number: int) -> None:
            directory = world.vm / str(number)
            directory.mkdir()
            source = await world.seeds.seed_for(image, directory, Recorder())
            assert keys_in(source.path) == [ours.line]
            world.seeds.refresh_later("debian")

        await asyncio.gather(*(create(number) for number in range(10)))
        assert [done.state for done in await world.refreshed()] == [OperationState.DONE]
        assert [path.name for path in world.paths.image("debian").directory.glob("work-seed*")] == [world.seed.name]

    play(database, tmp_path, scene)


def test_a_refresh_that_fails_leaves_the_image_and_is_tried_again(
    tmp_path: Path, database: OperationStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    _image(tmp_path, OLD.line, seed_key=OLD.fingerprint)

    async def scene(world: World, ours: PublicKey) -> None:
        before = world.image
        with monkeypatch.context() as patched:
            patched.setattr("banger.images.work_seed.make_ext4", _full)
            world.seeds.refresh_later("debian")
            (failed,) = await world.refreshed()
        assert failed.state is OperationState.FAILED
        assert world.image == before
        assert [path.name for path in world.paths.images.iterdir()] == ["debian"]
        world.seeds.refresh_later("debian")
        assert (await world.refreshed())[0].state is OperationState.DONE
        assert world.image.seed_key == ours.fingerprint

    play(database, tmp_path, scene)


async def _full(*_: object, **__: object) -> None:
    raise OSError(28, "No space left on device")


def test_a_seed_that_cannot_be_made_leaves_nothing_in_the_vms_directory(
    tmp_path: Path, database: OperationStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    _image(tmp_path, OLD.line, older=True)
    monkeypatch.setattr("banger.images.work_seed.make_ext4", _full)

    async def scene(world: World, _: PublicKey) -> None:
        with pytest.raises(OSError, match="No space"):
            await world.seeds.seed_for(world.image, world.vm, Recorder())
        assert list(world.vm.iterdir()) == []

    play(database, tmp_path, scene)


def test_an_image_that_cannot_be_written_or_is_gone_is_left_alone(
    tmp_path: Path, database: OperationStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    _image(tmp_path, OLD.line, seed_key=OLD.fingerprint)

    async def scene(world: World, _: PublicKey) -> None:
        world.seeds.refresh_later("nobody")
        with monkeypatch.context() as patched:
            patched.setattr("banger.service.seeds.os.access", lambda path, mode: False)
            world.seeds.refresh_later("debian")
        assert await world.refreshed() == []

    play(database, tmp_path, scene)


REFRESH = """
import asyncio, os, sys
from pathlib import Path
from tests.unit.images.tiny import key, room
from banger.images.catalog import find_image, part_path, workspace
from banger.images.parts import replace_parts
from banger.images.work_seed import remake_work_seed
from banger.paths import Paths
where = Path(sys.argv[1])
paths = Paths(where / "state", where / "run", where / "cache")

async def main():
    print("ready", flush=True)
    for turn in range(10**6):
        image, new = find_image(paths, "debian"), key("ABCD"[turn % 4])
        async with workspace(paths) as work:
            seed = work / "work-seed.ext4"
            await remake_work_seed(part_path(paths, image, "work-seed"), "/", seed, room, key=new, old=image.seed_key)
            await replace_parts(paths, image, {"work-seed": seed}, seed_key=new.fingerprint)
        print("renewed", flush=True)

asyncio.run(main())
"""


def test_a_refresh_killed_at_any_moment_leaves_the_old_seed_or_the_new_one(tmp_path: Path) -> None:
    _image(tmp_path, f"{key('D').line}\n{OTHER}\n", seed_key=key("D").fingerprint)
    paths = Paths(tmp_path / "state", tmp_path / "run", tmp_path / "cache")
    paths.runtime.mkdir()
    known = {key(letter).fingerprint: key(letter).line for letter in "ABCD"}
    chance, longest = random.Random(5), 0.1
    for point in range(20):
        with subprocess.Popen(
            [sys.executable, "-c", REFRESH, str(tmp_path)], stdout=subprocess.PIPE, cwd=ROOT, start_new_session=True
        ) as child:
            assert child.stdout is not None
            assert child.stdout.readline() == b"ready\n"
            for _ in range(point % 3):  # so many in full, however slow this host is; then a part of one
                begun = time.monotonic()
                assert child.stdout.readline() == b"renewed\n"
                longest = max(longest, time.monotonic() - begun)
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(chance.uniform(0, longest))
            # what it has started ends by itself, or with it
            os.kill(child.pid, signal.SIGKILL)
            child.wait(20)
        found = asyncio.run(verify_image(paths, "debian", Recorder()))
        seed = part_path(paths, find_image(paths, "debian"), WORK_SEED)
        assert keys_in(seed) == [known[found.seed_key], OTHER]
    asyncio.run(sweep(paths))
    sweep_parts(paths)
    assert [path.name for path in paths.images.iterdir()] == ["debian"]
    assert [path.name for path in paths.image("debian").directory.glob("work-seed*")] == [seed.name]
