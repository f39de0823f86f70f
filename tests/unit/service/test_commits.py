"""Committing a VM without a machine: its disks become an image, and it is afterwards what it was, whatever happens."""

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path

import msgspec
import psutil
import pytest

from banger.config import Settings
from banger.images.catalog import find_image, list_images, part_path
from banger.images.verify import verify_image
from banger.jobs.operations import Job, Operations
from banger.model.commit import CommitSpec
from banger.model.errors import Busy, CommandFailed, Conflict, Invalid, NotFound, Unsupported
from banger.model.image import WORK_SEED, Image
from banger.model.operation import Operation, OperationState
from banger.model.vm import Vm, VmState
from banger.paths import ImagePaths
from banger.service import commits, stillness
from banger.service.appliance import Appliance
from banger.service.bundle import RuntimeBundle
from banger.service.commits import CommitService
from banger.service.drafts import Drafts
from banger.service.stillness import wake
from banger.service.vms import EngineChoice
from banger.storage.copies import copy_disk
from banger.storage.flatten import flatten
from banger.storage.overlays import create_root_overlay
from banger.storage.work_disks import create_work_disk
from banger.store.db import open_database
from banger.store.operations import OperationStore
from banger.store.vms import VmStore
from banger.system.ext4 import MIB
from tests.unit.guest.hybrid import listening
from tests.unit.images.recorder import Recorder
from tests.unit.images.tiny import OTHER, keys_in, make_image, needs_e2fsprogs, read, room
from tests.unit.service.pretend import VM_ID, PretendedEngine, paths_in
from tests.unit.test_store import make_vm

pytestmark = needs_e2fsprogs


def _change(filesystem: Path, command: str) -> None:
    subprocess.run(["debugfs", "-w", "-R", command, str(filesystem)], check=True, capture_output=True)


class _Appliance(Appliance):
    """Edits by debugfs: what the real one does is tried with a machine."""

    edits: list[tuple[bytes, list[str]]]

    async def edit(self, job: Job, image: Image, directory: Path, script: bytes, tree: Path | None = None) -> None:
        self.edits.append((script, sorted(str(path.relative_to(tree)) for path in tree.rglob("*")) if tree else []))
        await asyncio.to_thread(_change, ImagePaths(directory).root, "mkdir /edited")


class World:
    """A daemon's objects, as far as commits need them, with one VM; its engine is pretended."""

    def __init__(self, directory: Path, vms: VmStore, operations: Operations) -> None:
        self.paths, self.vms, self.operations = paths_in(directory), vms, operations
        self.paths.runtime.mkdir(exist_ok=True)
        self.bundle = RuntimeBundle(self.paths, Settings())
        self.appliance = _Appliance(self.paths, Settings(), EngineChoice(self.paths), room)
        self.appliance.edits = []
        drafts = Drafts(self.paths, self.bundle, self.appliance, room)
        self.service = CommitService(self.paths, vms, operations, drafts, self.bundle, room)
        self.engine = PretendedEngine()
        self.vm_paths = self.paths.vm(VM_ID)

    @property
    def mark(self) -> Path:
        return self.vm_paths.state / ".still"

    async def add(self, state: VmState, *, work_disk: bool = True) -> Vm:
        image = await asyncio.to_thread(make_image, self.paths, "base", OTHER)
        for directory in self.vm_paths:
            directory.mkdir(parents=True)
        await create_root_overlay(part_path(self.paths, image, "root"), self.vm_paths.root_overlay, 32 * MIB)
        vm = msgspec.structs.replace(
            make_vm("a", VM_ID), state=state, image="base", work_disk_bytes=64 * MIB if work_disk else 0
        )
        if work_disk:
            seed = part_path(self.paths, image, WORK_SEED)
            await create_work_disk(seed, self.vm_paths.work_disk, 64 * MIB, Recorder(), room)
            await asyncio.to_thread(_change, self.vm_paths.work_disk, f"write {__file__} mine")
        self.vms.add(vm)
        return vm

    async def commit(self, **words: bool) -> Operation:
        spec = CommitSpec(vm="a", name="new", **words)
        return await self.operations.wait(self.service.commit(spec).id)

    def notes(self, operation: Operation) -> str:
        return "\n".join(event.data["text"] for event in self.operations.events(operation.id) if event.kind == "note")


Scene = Callable[[World], Awaitable[None]]


@pytest.fixture
def play(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Scene], None]:
    @contextlib.asynccontextmanager
    async def frozen(guest: object, paths: Sequence[str]) -> AsyncIterator[None]:
        """Never the host's own filesystems."""
        yield

    monkeypatch.setattr(stillness, "frozen", frozen)

    def run(scene: Scene) -> None:
        async def main() -> None:
            with contextlib.closing(open_database(tmp_path / "db")) as database:
                world = World(tmp_path, VmStore(database), Operations(OperationStore(database)))
                await world.bundle.open()
                async with asyncio.timeout(60):
                    await scene(world)
                    await world.operations.close()
                assert list(world.paths.images.glob(".tmp*")) == []
                assert not world.mark.exists()

        asyncio.run(main())

    return run


def test_a_stopped_vm_becomes_an_image_with_the_home_of_its_own_image(play: Callable[[Scene], None]) -> None:
    async def scene(world: World) -> None:
        vm = await world.add(VmState.STOPPED)
        before = world.vm_paths.root_overlay.read_bytes()
        operation = await world.commit()
        assert operation.error is None
        image = find_image(world.paths, "new")
        assert (image.parents, image.managed, image.parts["root"].bytes) == (("base",), True, 32 * MIB)
        await verify_image(world.paths, "new", Recorder())
        ((script, tree),) = world.appliance.edits
        assert b"KEEP_ROOT=1\n" not in script.splitlines(keepends=True)[:1]
        assert "home/.ssh/authorized_keys" in tree
        assert "home/mine" not in tree
        assert "mine" not in read(part_path(world.paths, image, WORK_SEED), "ls /")
        assert "edited" in read(part_path(world.paths, image, "root"), "ls /")
        assert world.vms.find("a") == vm
        assert world.vm_paths.root_overlay.read_bytes() == before

    play(scene)


def test_with_the_work_disk_its_content_is_the_seed(play: Callable[[Scene], None]) -> None:
    async def scene(world: World) -> None:
        await world.add(VmState.STOPPED)
        assert (await world.commit(with_work_disk=True)).error is None
        seed = part_path(world.paths, find_image(world.paths, "new"), WORK_SEED)
        assert "mine" in read(seed, "ls /")
        assert (await world.bundle.key()).line in keys_in(seed)

    play(scene)


def test_without_a_work_disk_the_roots_own_home_stays_when_it_is_asked_for(play: Callable[[Scene], None]) -> None:
    async def scene(world: World) -> None:
        await world.add(VmState.STOPPED, work_disk=False)
        assert (await world.commit(with_work_disk=True)).error is None
        ((script, tree),) = world.appliance.edits
        assert script.startswith(b"KEEP_ROOT=1\n")
        assert tree == []
        seed = part_path(world.paths, find_image(world.paths, "new"), WORK_SEED)
        assert "# the image's" in read(seed, "cat /.bashrc")

    play(scene)


def test_a_vm_that_runs_stands_still_only_while_its_disks_are_copied(
    play: Callable[[Scene], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scene(world: World) -> None:
        await world.add(VmState.RUNNING)
        states = []

        async def copying(source: Path, *words: object) -> None:
            states.append((source.name, world.engine.state, world.mark.exists()))
            await copy_disk(source, *words)  # type: ignore[arg-type]

        monkeypatch.setattr(commits, "copy_disk", copying)
        async with listening(world.vm_paths.api_socket, world.engine.answer):
            operation = await world.commit(with_work_disk=True)
        assert operation.error is None
        assert states == [("root.qcow2", "Paused", True), ("work.ext4", "Paused", True)]
        assert world.engine.state == "Running"
        assert "a stood still for" in world.notes(operation)

    play(scene)


def test_after_a_failure_it_runs_on_and_can_be_worked_on(
    play: Callable[[Scene], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scene(world: World) -> None:
        vm = await world.add(VmState.RUNNING)

        async def failing(*words: object) -> None:
            assert world.engine.state == "Paused"
            raise CommandFailed("no")

        monkeypatch.setattr(commits, "copy_disk", failing)
        async with listening(world.vm_paths.api_socket, world.engine.answer):
            operation = await world.commit()
        assert operation.state is OperationState.FAILED
        assert world.engine.state == "Running"
        assert world.vms.find("a") == vm
        world.operations.check_free("vm/a")
        assert [image.name for image in list_images(world.paths)] == ["base"]

    play(scene)


def test_cancelled_while_it_stands_still_it_runs_on(
    play: Callable[[Scene], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scene(world: World) -> None:
        await world.add(VmState.RUNNING)
        there = asyncio.Event()

        async def waiting(*words: object) -> None:
            there.set()
            await asyncio.Event().wait()

        monkeypatch.setattr(commits, "copy_disk", waiting)
        async with listening(world.vm_paths.api_socket, world.engine.answer):
            operation = world.service.commit(CommitSpec(vm="a", name="new"))
            await there.wait()
            with pytest.raises(Busy):
                world.operations.check_free("vm/a")
            world.operations.cancel(operation.id)
            assert (await world.operations.wait(operation.id)).state is OperationState.CANCELLED
        assert world.engine.state == "Running"
        assert world.engine.asked.count("PATCH /vm") == 2

    play(scene)


def test_the_vm_is_free_once_its_disks_are_copied(
    play: Callable[[Scene], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scene(world: World) -> None:
        await world.add(VmState.STOPPED)

        async def flattening(*words: object) -> None:
            world.operations.check_free("vm/a")
            with pytest.raises(Busy):
                world.operations.check_free("image/new")
            await flatten(*words)  # type: ignore[arg-type]

        monkeypatch.setattr(commits, "flatten", flattening)
        assert (await world.commit()).error is None

    play(scene)


def test_a_vm_that_a_dead_daemon_had_stopped_for_a_moment_is_woken(play: Callable[[Scene], None]) -> None:
    async def scene(world: World) -> None:
        vm = await world.add(VmState.RUNNING)
        world.engine.state = "Paused"
        async with listening(world.vm_paths.api_socket, world.engine.answer):
            await wake(world.paths, vm)  # one that its owner has paused
            assert world.engine.state == "Paused"
            world.mark.touch()
            await wake(world.paths, vm)
        assert world.engine.state == "Running"

    play(scene)


def test_what_cannot_be_committed_is_refused_at_once(play: Callable[[Scene], None]) -> None:
    async def scene(world: World) -> None:
        vm = await world.add(VmState.STOPPED)
        with pytest.raises(NotFound):
            world.service.commit(CommitSpec(vm="nobody", name="new"))
        with pytest.raises(Conflict):
            world.service.commit(CommitSpec(vm="a", name="base"))
        with pytest.raises(Invalid):
            world.service.commit(CommitSpec(vm="a", name="../x"))
        world.vms.update(msgspec.structs.replace(vm, state=VmState.DELETING))
        with pytest.raises(Conflict):
            world.service.commit(CommitSpec(vm="a", name="new"))
        world.vms.update(vm)
        world.vm_paths.root_changes.touch()
        with pytest.raises(Unsupported):
            world.service.commit(CommitSpec(vm="a", name="new"))
        assert world.operations.all(10) == []

    play(scene)


def test_machines_that_a_dead_daemon_left_are_ended_and_their_files_removed(
    tmp_path: Path, play: Callable[[Scene], None]
) -> None:
    own = paths_in(tmp_path).appliance("abcdef012345")
    for directory in own:
        directory.mkdir(parents=True)
    (own.state / "initramfs.cpio").write_bytes(b"x")
    # a process that is told apart as an engine is: by its id, and the socket among its words
    engine = subprocess.Popen([sys.executable, "-c", "input()", str(own.api_socket)], stdin=subprocess.PIPE)

    async def scene(world: World) -> None:
        for _ in range(2):
            await world.appliance.sweep()
            assert not psutil.pid_exists(engine.pid)
            assert list(world.paths.appliances.iterdir()) == []
            assert not own.runtime.exists()

    try:
        play(scene)
    finally:
        engine.kill()
        engine.communicate()
