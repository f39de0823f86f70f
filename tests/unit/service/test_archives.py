"""Images that move: out of one home, into another with another key; and all that can go wrong on the way."""

import asyncio
import contextlib
import os
import subprocess
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from banger.config import Settings
from banger.images import catalog
from banger.images.archive_manifest import FILES
from banger.images.archive_parts import unpacking
from banger.images.verify import verify_image
from banger.jobs.operations import Job, Operations
from banger.model.capacity import Filesystem
from banger.model.errors import BangerError, Busy, Conflict, HostRequirement, Invalid, NotFound, from_dict
from banger.model.image import WORK_SEED, ExportSpec, Image, ImportSpec
from banger.model.keys import PublicKey
from banger.model.operation import EventKind, Operation, OperationState
from banger.model.sizes import GIB
from banger.paths import Paths
from banger.service.admission import Admission
from banger.service.archives import Archives
from banger.service.bundle import RuntimeBundle
from banger.store.db import open_database
from banger.store.operations import OperationStore
from banger.system.files import sha256_of
from tests.unit.images.archives import beginning, compressed
from tests.unit.images.recorder import Recorder
from tests.unit.images.tiny import OTHER, key, keys_in, make_image, needs_e2fsprogs, read

pytestmark = needs_e2fsprogs
THEIRS = key("T")
LIMIT_S = 60.0


async def _nothing(job: Job) -> None:
    """What an import of somebody else's archive does here."""


class World:
    """A daemon's objects, as far as archives need them, with a key of their own."""

    def __init__(self, directory: Path, store: OperationStore) -> None:
        self.paths = Paths(directory / "state", directory / "run", directory / "cache")
        for path in self.paths:
            path.mkdir(parents=True, exist_ok=True)
        self.free = 100 * GIB
        self.operations = Operations(store)
        self.bundle = RuntimeBundle(self.paths, Settings())
        room = Admission(self.paths, Settings(), lambda path: Filesystem(total=200 * GIB, used=0, free=self.free))
        self.given_on: list[ImportSpec] = []
        self.archives = Archives(self.paths, Settings(), self.operations, self.bundle, room, self._give_on)

    def _give_on(self, spec: ImportSpec) -> Operation:
        self.given_on.append(spec)
        return self.operations.begin("image.import", "archive/other", _nothing)

    async def ended(self, operation: Operation) -> Operation:
        return await self.operations.wait(operation.id)

    async def export(self, name: str, path: Path, *, force: bool = False) -> Operation:
        return await self.ended(self.archives.export_image(name, ExportSpec(path=str(path), force=force)))

    async def bring(self, path: Path, name: str | None = None, *, check: bool = False) -> Operation:
        return await self.ended(self.archives.import_image(ImportSpec(path=str(path), name=name, check=check)))

    def notes(self, operation: Operation) -> list[str]:
        return [event.data["text"] for event in self.operations.events(operation.id) if event.kind is EventKind.NOTE]

    def kept(self) -> set[str]:
        """Parts that imports have left for later."""
        return {path.name for path in self.paths.imports.glob("*/*")}

    def check_nothing_left(self) -> None:
        """Of an import that failed, but what was complete when it was interrupted."""
        assert [path.name for path in self.paths.images.glob("*")] in ([], ["theirs"])
        assert not list(self.paths.imports.glob("*"))
        assert not list(self.paths.exports.glob("*"))


async def until(true: Callable[[], object]) -> None:
    """Wait for what happens in a thread."""
    while not true():  # noqa: ASYNC110
        await asyncio.sleep(0.01)


def failed(operation: Operation) -> BangerError:
    assert operation.state is OperationState.FAILED, operation
    assert operation.error is not None
    error = from_dict(operation.error)
    assert error.hint
    return error


@pytest.fixture
def store(tmp_path: Path) -> Iterator[OperationStore]:
    with contextlib.closing(open_database(tmp_path / "db")) as database:
        yield OperationStore(database)


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Image]:
    """Another person's archive of an image that lets this person in, and that image."""
    folder = tmp_path_factory.mktemp("theirs")
    paths = Paths(folder / "state", folder / "run", folder / "cache")
    image = make_image(paths, "theirs", f"{OTHER}\n{THEIRS.line}\n", seed_key=THEIRS.fingerprint)
    parented = msgspec.structs.replace(image, parents=("base",), memory_mib=256)
    metadata = paths.image("theirs").metadata
    metadata.chmod(0o644)
    metadata.write_bytes(msgspec.json.encode(parented))
    with contextlib.closing(open_database(folder / "db")) as database:
        world = World(folder, OperationStore(database))
        done = asyncio.run(world.export("theirs", folder / "theirs.banger.tar.zst"))
        assert done.state is OperationState.DONE, done.error
    return folder / "theirs.banger.tar.zst", parented


def play(directory: Path, store: OperationStore, scene: Callable[[World, PublicKey], Awaitable[None]]) -> None:
    async def main() -> None:
        world = World(directory, store)
        await world.bundle.open()
        async with asyncio.timeout(LIMIT_S):
            await scene(world, await world.bundle.key())
            await world.operations.close()

    asyncio.run(main())


def test_an_image_that_was_moved_is_sound_and_lets_in_this_person_instead_of_the_other(
    tmp_path: Path, store: OperationStore, theirs: tuple[Path, Image]
) -> None:
    archive, original = theirs

    async def scene(world: World, ours: PublicKey) -> None:
        done = await world.bring(archive, "mine")
        assert done.state is OperationState.DONE, done.error
        image = catalog.find_image(world.paths, "mine")
        assert msgspec.convert(done.result, Image) == image
        assert image.origin.startswith("imported from theirs.banger.tar.zst at 20")
        assert original.origin in image.origin
        assert (image.parents, image.memory_mib, image.managed) == ((), 256, True)
        assert image.seed_key == ours.fingerprint
        where = world.paths.image("mine")
        assert keys_in(where.work_seed) == [ours.line, OTHER]
        assert read(where.root, "cat /root/.ssh/authorized_keys").splitlines() == [ours.line, OTHER]
        assert "600" in read(where.root, "stat /root/.ssh/authorized_keys")
        assert image.parts["kernel"] == original.parts["kernel"]
        found = await verify_image(world.paths, "mine", Recorder())
        assert found.checked[WORK_SEED] == ["sha256", "filesystem", "key"]
        assert where.root.stat().st_mode & 0o222 == 0
        assert not list(world.paths.imports.glob("*"))
        assert [stage.name for stage in done.stages] == [
            "manifest", "unpack", "check the filesystems", "keys", "publish",
        ]  # fmt: skip

    play(tmp_path, store, scene)


def test_ones_own_image_comes_back_as_it_was(tmp_path: Path, store: OperationStore) -> None:
    async def scene(world: World, ours: PublicKey) -> None:
        image = await asyncio.to_thread(make_image, world.paths, "own", ours.line, seed_key=ours.fingerprint)
        assert (await world.export("own", tmp_path / "a")).state is OperationState.DONE
        assert (tmp_path / "a").stat().st_mode & 0o077 == 0
        await catalog.delete_image(world.paths, "own")
        assert (await world.bring(tmp_path / "a")).state is OperationState.DONE
        back = catalog.find_image(world.paths, "own")
        assert {role: part.sha256 for role, part in back.parts.items()} == {
            role: part.sha256 for role, part in image.parts.items()
        }
        assert await world.export("own", tmp_path / "b")

    play(tmp_path, store, scene)


def test_check_reads_everything_and_writes_nothing(
    tmp_path: Path, store: OperationStore, theirs: tuple[Path, Image]
) -> None:
    archive, original = theirs

    async def scene(world: World, _: PublicKey) -> None:
        world.free = 0
        done = await world.bring(archive, check=True)
        assert done.state is OperationState.DONE, done.error
        assert done.result["checked"] == {role: ["sha256"] for role in original.parts}
        (tmp_path / "short").write_bytes(archive.read_bytes()[:-100])
        assert isinstance(failed(await world.bring(tmp_path / "short", check=True)), Invalid)
        world.check_nothing_left()

    play(tmp_path, store, scene)


def test_a_name_that_is_taken_is_told_before_the_parts_are_read(
    tmp_path: Path, store: OperationStore, theirs: tuple[Path, Image]
) -> None:
    archive, _ = theirs

    async def scene(world: World, ours: PublicKey) -> None:
        await asyncio.to_thread(make_image, world.paths, "theirs", ours.line)
        error = failed(await world.bring(archive))
        assert isinstance(error, Conflict)
        assert "--name" in error.hint
        with pytest.raises(Conflict):
            await world.bring(archive, "theirs")
        with pytest.raises(Invalid, match="not a valid image name"):
            await world.bring(archive, "../x")
        with pytest.raises(NotFound):
            await world.bring(tmp_path / "nothing")
        with pytest.raises(Invalid, match="not absolute"):
            await world.bring(Path("relative"))
        world.check_nothing_left()

    play(tmp_path, store, scene)


def test_of_an_archive_that_was_cut_short_or_changed_nothing_is_left(
    tmp_path: Path, store: OperationStore, theirs: tuple[Path, Image]
) -> None:
    archive, _ = theirs
    whole = archive.read_bytes()
    changed = bytearray(whole)
    changed[-20] ^= 1

    async def scene(world: World, _: PublicKey) -> None:
        for data in (whole[:-1], whole[: len(whole) - len(whole) // 4], bytes(changed), whole + b"x"):
            (tmp_path / "bad").write_bytes(data)
            error = failed(await world.bring(tmp_path / "bad"))
            assert isinstance(error, Invalid)
            assert "the archive is " in error.message
            world.check_nothing_left()

    play(tmp_path, store, scene)


def scratched(root: Path) -> None:
    with root.open("r+b") as file:
        file.seek(4096)
        file.write(os.urandom(65536))


def with_a_journal(root: Path) -> None:
    subprocess.run(["debugfs", "-w", "-R", "feature needs_recovery", root], check=True, capture_output=True)


@pytest.mark.parametrize(
    ("change", "said"), [(scratched, "root.ext4 has errors"), (with_a_journal, "journal of root.ext4 is not replayed")]
)
def test_a_filesystem_that_is_not_sound_is_refused_though_its_digest_is_right(
    tmp_path: Path, store: OperationStore, change: Callable[[Path], None], said: str
) -> None:
    async def scene(world: World, ours: PublicKey) -> None:
        image = await asyncio.to_thread(make_image, world.paths, "theirs", ours.line, seed_key=ours.fingerprint)
        where = world.paths.image("theirs")
        for path in (where.root, where.metadata):
            path.chmod(0o644)
        await asyncio.to_thread(change, where.root)
        root = msgspec.structs.replace(image.parts["root"], sha256=sha256_of(where.root))
        described = msgspec.structs.replace(image, parts={**image.parts, "root": root})
        where.metadata.write_bytes(msgspec.json.encode(described))
        assert (await world.export("theirs", tmp_path / "a")).state is OperationState.DONE
        assert said in failed(await world.bring(tmp_path / "a", "mine")).message
        world.check_nothing_left()

    play(tmp_path, store, scene)


async def interrupted(world: World, archive: Path, share: float, name: str | None = None) -> Operation:
    """An import through a pipe that is cancelled when it has been given so much of the archive."""
    there, here = os.pipe()
    data = archive.read_bytes()
    os.set_blocking(here, False)
    sent = 0
    try:
        operation = world.archives.import_image(ImportSpec(path=f"/proc/{os.getpid()}/fd/{there}", name=name))
        while sent < int(len(data) * share):
            with contextlib.suppress(BlockingIOError):
                sent += os.write(here, data[sent : int(len(data) * share)])
            await asyncio.sleep(0.01)
        await until(lambda: FILES[WORK_SEED] in world.kept())
        world.operations.cancel(operation.id)
        return await world.ended(operation)
    finally:
        os.close(there)
        os.close(here)


def test_an_import_goes_on_where_the_one_before_was_interrupted(
    tmp_path: Path, store: OperationStore, theirs: tuple[Path, Image]
) -> None:
    archive, original = theirs

    async def scene(world: World, _: PublicKey) -> None:
        ended = await interrupted(world, archive, 0.97)
        assert ended.state is OperationState.CANCELLED
        assert ended.error is not None
        assert "kept" in ended.error["hint"]
        complete = {FILES[role] for role in original.parts if role != "root"}
        assert world.kept() == complete
        assert not list(world.paths.images.glob("*"))
        marked = {path: path.stat().st_ino for path in world.paths.imports.glob("*/*")}
        await world.archives.sweep()
        assert world.kept() == complete
        done = await world.bring(archive)
        assert done.state is OperationState.DONE, done.error
        told = [note for note in world.notes(done) if "interrupted" in note]
        assert all(name in told[0] for name in complete)
        kernel = world.paths.image("theirs").kernel
        assert kernel.stat().st_ino in marked.values(), "it was not written again"
        await verify_image(world.paths, "theirs", Recorder())
        assert not world.kept()

    play(tmp_path, store, scene)


def test_what_was_kept_goes_when_the_archive_turns_out_to_be_damaged(
    tmp_path: Path, store: OperationStore, theirs: tuple[Path, Image]
) -> None:
    archive, _ = theirs

    async def scene(world: World, _: PublicKey) -> None:
        await interrupted(world, archive, 0.97)
        assert world.kept()
        (tmp_path / "short").write_bytes(archive.read_bytes()[:-1])
        failed(await world.bring(tmp_path / "short"))
        world.check_nothing_left()

    play(tmp_path, store, scene)


def test_a_full_disk_refuses_before_anything_is_written(
    tmp_path: Path, store: OperationStore, theirs: tuple[Path, Image]
) -> None:
    async def scene(world: World, _: PublicKey) -> None:
        world.free = 2 * GIB
        assert isinstance(failed(await world.bring(theirs[0])), HostRequirement)
        world.check_nothing_left()

    play(tmp_path, store, scene)


def test_an_archive_is_imported_once_at_a_time(tmp_path: Path, store: OperationStore) -> None:
    async def scene(world: World, _: PublicKey) -> None:
        async with unpacking(world.paths, b"manifest") as directory:
            (directory / FILES["kernel"]).write_bytes(b"complete")
            with pytest.raises(Conflict, match="being imported already"):
                async with unpacking(world.paths, b"manifest"):
                    pass
            assert world.kept(), "nobody took it away from the first"
        assert not world.kept()

    play(tmp_path, store, scene)


def test_an_export_replaces_a_file_only_when_told_and_leaves_nothing_when_it_fails(
    tmp_path: Path, store: OperationStore
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    there = out / "a"

    async def scene(world: World, ours: PublicKey) -> None:
        image = await asyncio.to_thread(make_image, world.paths, "theirs", ours.line, seed_key=ours.fingerprint)
        there.write_text("mine")
        with pytest.raises(Conflict, match="there is a file"):
            await world.export("theirs", there)
        with pytest.raises(Invalid, match="no directory"):
            await world.export("theirs", out / "no" / "a")
        with pytest.raises(Invalid, match="is no file"):
            await world.export("theirs", out, force=True)
        with pytest.raises(Invalid, match="is no file"):
            await world.export("theirs", Path("/dev/null"), force=True)
        with pytest.raises(NotFound):
            await world.export("nothing", out / "b")
        assert there.read_text() == "mine"
        kernel = catalog.part_path(world.paths, image, "kernel")
        kernel.chmod(0o644)
        kernel.write_bytes(b"Kernel")
        error = failed(await world.export("theirs", there, force=True))
        assert "vmlinux is not what it was" in error.message
        assert there.read_text() == "mine"
        kernel.write_bytes(b"kernel")
        assert (await world.export("theirs", there, force=True)).state is OperationState.DONE
        assert there.read_bytes().startswith(b"\x28\xb5\x2f\xfd")
        assert [path.name for path in out.iterdir()] == ["a"]
        world.check_nothing_left()

    play(tmp_path, store, scene)


def test_while_it_is_exported_an_image_is_not_deleted_and_a_cancelled_export_leaves_nothing(
    tmp_path: Path, store: OperationStore
) -> None:
    async def scene(world: World, ours: PublicKey) -> None:
        await asyncio.to_thread(make_image, world.paths, "theirs", ours.line, seed_key=ours.fingerprint)
        there, here = os.pipe()
        while True:  # full: whoever writes to it waits
            os.set_blocking(here, False)
            try:
                os.write(here, bytes(4096))
            except BlockingIOError:
                break
        spec = ExportSpec(path=f"/proc/{os.getpid()}/fd/{here}", stream=True)
        operation = world.archives.export_image("theirs", spec)
        with pytest.raises(Busy):
            world.archives.export_image("theirs", spec)
        await until(lambda: world.operations.events(operation.id))
        with pytest.raises(Conflict):
            await catalog.delete_image(world.paths, "theirs")
        world.operations.cancel(operation.id)
        assert (await world.ended(operation)).state is OperationState.CANCELLED
        os.close(there)
        os.close(here)
        await catalog.delete_image(world.paths, "theirs")

    play(tmp_path, store, scene)


def test_nobody_reads_an_export_any_more(tmp_path: Path, store: OperationStore) -> None:
    async def scene(world: World, ours: PublicKey) -> None:
        await asyncio.to_thread(make_image, world.paths, "theirs", ours.line, seed_key=ours.fingerprint)
        there, here = os.pipe()
        os.close(there)
        spec = ExportSpec(path=f"/proc/{os.getpid()}/fd/{here}", stream=True)
        error = failed(await world.ended(world.archives.export_image("theirs", spec)))
        assert "has left" in error.message
        os.close(here)

    play(tmp_path, store, scene)


def test_what_a_killed_daemon_was_writing_is_removed_at_the_next_start(tmp_path: Path, store: OperationStore) -> None:
    out = tmp_path / "out"
    out.mkdir()

    async def scene(world: World, _: PublicKey) -> None:
        world.paths.exports.mkdir()
        left, others = out / "a.partial-0123abcd", out / "a.partial-ffffffff"
        for path in (left, others):
            path.write_bytes(b"half")
        (world.paths.exports / "0123abcd").symlink_to(left)
        (world.paths.exports / "deadbeef").symlink_to(out / "a.partial-deadbeef")
        directory = world.paths.imports / ("0" * 64)
        directory.mkdir(parents=True)
        (directory / "root.ext4.partial").write_bytes(b"half")
        await world.archives.sweep()
        assert list(out.iterdir()) == [others], "nobody said that this one is ours"
        world.check_nothing_left()

    play(tmp_path, store, scene)


def test_a_registered_image_goes_out_with_its_files_and_comes_in_as_a_managed_one(
    tmp_path: Path, store: OperationStore
) -> None:
    elsewhere = tmp_path / "mine.ext4"

    async def scene(world: World, ours: PublicKey) -> None:
        image = await asyncio.to_thread(make_image, world.paths, "theirs", ours.line, seed_key=ours.fingerprint)
        where = world.paths.image("theirs")
        where.root.rename(elsewhere)
        changed = elsewhere.stat().st_mtime_ns
        root = msgspec.structs.replace(image.parts["root"], file=str(elsewhere), modified_ns=changed)
        where.metadata.chmod(0o644)
        registered = msgspec.structs.replace(image, managed=False, parts={**image.parts, "root": root})
        where.metadata.write_bytes(msgspec.json.encode(registered))
        assert (await world.export("theirs", tmp_path / "a")).state is OperationState.DONE
        assert (await world.bring(tmp_path / "a", "mine")).state is OperationState.DONE
        back = catalog.find_image(world.paths, "mine")
        assert back.managed
        assert back.parts["root"] == image.parts["root"]
        assert sha256_of(world.paths.image("mine").root) == image.parts["root"].sha256
        os.utime(elsewhere, ns=(0, 0))
        with pytest.raises(Invalid, match=r"mine\.ext4 was changed"):
            await world.export("theirs", tmp_path / "b")

    play(tmp_path, store, scene)


def test_a_part_that_archives_do_not_know_is_not_exported(tmp_path: Path, store: OperationStore) -> None:
    async def scene(world: World, ours: PublicKey) -> None:
        image = await asyncio.to_thread(make_image, world.paths, "theirs", ours.line)
        metadata = world.paths.image("theirs").metadata
        metadata.chmod(0o644)
        parts = {**image.parts, "firmware": image.parts["kernel"]}
        metadata.write_bytes(msgspec.json.encode(msgspec.structs.replace(image, parts=parts)))
        error = failed(await world.export("theirs", tmp_path / "a"))
        assert "firmware" in error.message
        assert not (tmp_path / "a").exists()

    play(tmp_path, store, scene)


def test_an_archive_that_names_more_than_is_taken_is_refused_at_its_manifest(
    tmp_path: Path, store: OperationStore, theirs: tuple[Path, Image]
) -> None:
    from tests.unit.images.archives import SMALL, simple

    manifest = simple(SMALL)
    huge = msgspec.structs.replace(manifest.parts[-1], bytes=1 << 60)
    told = msgspec.structs.replace(manifest.image.parts["root"], bytes=1 << 60)
    image = msgspec.structs.replace(manifest.image, parts={**manifest.image.parts, "root": told})
    lying = msgspec.structs.replace(manifest, parts=[*manifest.parts[:-1], huge], image=image)
    (tmp_path / "bomb").write_bytes(compressed(beginning(lying)))

    async def scene(world: World, _: PublicKey) -> None:
        error = failed(await world.bring(tmp_path / "bomb"))
        assert "128 GiB are taken" in error.message
        assert "import_max_mib" in error.hint
        world.check_nothing_left()

    play(tmp_path, store, scene)
