"""A disk that becomes full while an image is imported: what was complete stays, and the next import goes on with it."""

import asyncio
import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from banger.images import catalog
from banger.images.archive_manifest import FILES
from banger.images.verify import verify_image
from banger.model.errors import HostRequirement
from banger.model.image import WORK_SEED, ImportSpec
from banger.model.keys import PublicKey
from banger.model.operation import OperationState
from banger.store.db import open_database
from banger.store.operations import OperationStore
from banger.system.files import sha256_of
from tests.unit.images.recorder import Recorder
from tests.unit.images.tiny import make_image
from tests.unit.service.test_archives import World, failed, play, until

MIB = 1 << 20
pytestmark = [pytest.mark.host, pytest.mark.skipif(os.geteuid() != 0, reason="mounts are root's")]


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Path]:
    """A small filesystem for the cache."""
    mount = tmp_path / "cache"
    mount.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", str(mount)], check=True)
    yield mount
    subprocess.run(["umount", str(mount)], check=True)


def with_noise(world: World, ours: PublicKey, noise: Path) -> None:
    """An image `large` whose root holds what cannot be compressed."""
    make_image(world.paths, "large", ours.line, seed_key=ours.fingerprint)
    image, where = catalog.find_image(world.paths, "large"), world.paths.image("large")
    noise.write_bytes(os.urandom(6 * MIB))
    where.root.chmod(0o644)
    subprocess.run(["debugfs", "-w", "-R", f"write {noise} noise", where.root], check=True, capture_output=True)
    part = msgspec.structs.replace(image.parts["root"], sha256=sha256_of(where.root))
    where.metadata.chmod(0o644)
    where.metadata.write_bytes(msgspec.json.encode(msgspec.structs.replace(image, parts={**image.parts, "root": part})))


def test_it_goes_on_when_there_is_room_again(tmp_path: Path, cache: Path) -> None:
    archive = tmp_path / "archive"
    there, here = os.pipe()

    async def scene(world: World, ours: PublicKey) -> None:
        await asyncio.to_thread(with_noise, world, ours, tmp_path / "noise")
        assert (await world.export("large", archive)).state is OperationState.DONE
        data = archive.read_bytes()
        spec = ImportSpec(path=f"/proc/{os.getpid()}/fd/{there}", name="new")
        operation = world.archives.import_image(spec)
        await asyncio.to_thread(os.write, here, data[: len(data) // 2])
        await until(lambda: FILES[WORK_SEED] in world.kept())
        with contextlib.suppress(OSError), (cache / "filler").open("ab", buffering=0) as filler:
            while True:
                filler.write(bytes(MIB // 4))
        sending = asyncio.ensure_future(asyncio.to_thread(os.write, here, data[len(data) // 2 :]))
        error = failed(await world.ended(operation))
        assert isinstance(error, HostRequirement)
        assert "the disk is full" in error.message
        os.close(there)
        with contextlib.suppress(BrokenPipeError):
            await sending
        assert world.kept() == {FILES[role] for role in ("kernel", "initramfs", WORK_SEED)}
        error = failed(await world.bring(archive, "new"))
        assert "are to be unpacked" in error.message
        (cache / "filler").unlink()
        done = await world.bring(archive, "new")
        assert done.state is OperationState.DONE, done.error
        assert any("interrupted" in note for note in world.notes(done))
        await verify_image(world.paths, "new", Recorder())
        assert not world.kept()

    with contextlib.closing(open_database(tmp_path / "db")) as database:
        play(tmp_path, OperationStore(database), scene)
    os.close(here)
