"""Builds, with a machine that is pretended: what is said before anything starts, the order, caching, and failures."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from banger.config import Settings
from banger.guest.shell import Shell
from banger.images.catalog import find_image, list_images, measure_parts
from banger.images.draft import Draft
from banger.images.layers import Layers
from banger.jobs.operations import Job, Operations
from banger.model.errors import BangerError, Busy, Conflict, HostRequirement, Invalid, NotFound, Timeout, Unsupported
from banger.model.image import MODULES, Image
from banger.model.operation import Event, EventKind, Operation, OperationState
from banger.model.recipe import BuildSpec, Copy
from banger.model.vm import Vm, VmState
from banger.paths import Paths
from banger.service.admission import Admission
from banger.service.build_end import ours
from banger.service.build_machine import BuildMachines
from banger.service.build_steps import plan
from banger.service.builds import BuildService
from banger.service.bundle import RuntimeBundle
from banger.service.drafts import Drafts
from banger.service.reconcile import Reconciler
from banger.store.db import open_database
from banger.store.operations import OperationStore
from banger.store.vms import VmStore
from tests.unit.images.test_layers import make_disk
from tests.unit.images.tiny import make_image, needs_e2fsprogs
from tests.unit.service import test_vms
from tests.unit.test_store import make_vm

pytestmark = needs_e2fsprogs


class PretendedShell:
    """A guest that says what it was told to run, and fails where a test wants it to."""

    def __init__(self, world: "World") -> None:
        self._world = world

    async def run(
        self, command: str, heard: Callable[[str], None], *, timeout: float, stdin: AsyncIterable[bytes] | None = None
    ) -> int:
        sent = b"".join([piece async for piece in stdin]) if stdin is not None else b""
        self._world.commands.append((command, sent))
        if "uname -r" in command:
            heard("6.99.1-test")
            return self._world.modules_status
        if b"exit 3" in sent:
            heard("first line")
            heard("it is \x1b[31mbroken")
            return 3
        if b"sleep" in sent:
            self._world.sleeping.set()
            await asyncio.sleep(3600)
        if b"late" in sent:
            raise Timeout("it did not end within 5 s")
        return 0


class PretendedMachines:
    """What a build asks of its machine; its disk is a file."""

    def __init__(self, world: "World") -> None:
        self._world = world
        self.layers = Layers(world.paths.layers, 1 << 30)
        self.qcow2 = True

    def check_room(self) -> None:
        pass

    def console(self, vm: Vm) -> list[str]:
        return ["the console's last line"]

    async def make(self, job: Job, vm: Vm, base: Image, layer: str | None) -> bool:
        self._world.made_of.append(layer)
        self._world.paths.vm(vm.id).state.mkdir(parents=True)

        async def gone() -> None:
            self._world.gone.append(vm.name)

        job.undo("remove the machine", gone)
        return layer is None or self.qcow2

    async def boot(self, job: Job, vm: Vm) -> Vm:
        return self._became(vm, VmState.RUNNING)

    def _became(self, vm: Vm, state: VmState) -> Vm:
        changed = msgspec.structs.replace(vm, state=state)
        self._world.vms.update(changed)
        return changed

    @asynccontextmanager
    async def shell(self, job: Job, vm: Vm) -> AsyncIterator[tuple[Shell, str]]:
        yield cast(Shell, PretendedShell(self._world)), "other"

    async def or_full(self, vm: Vm, work: Coroutine[Any, Any, None]) -> None:
        await work

    def has_layers(self, vm: Vm) -> bool:
        return self.qcow2

    async def keep_layer(self, job: Job, vm: Vm, key: str, steps: Sequence[str]) -> None:
        base = find_image(self._world.paths, vm.image)
        fresh = self.layers.fresh(key)
        argv_base = self._world.paths.image(base.name).root
        await asyncio.to_thread(make_disk, argv_base, fresh)
        self.layers.commit(key, fresh, base.name, steps)

    async def power_off(self, job: Job, vm: Vm) -> Vm:
        return self._became(vm, VmState.STOPPED)

    async def flatten(self, job: Job, vm: Vm, base: Image, target: Path) -> None:
        target.write_bytes(b"flat")

    async def keep(self, vm: Vm, job: Job) -> bool:
        job.keep()
        kept = self._world.vms.get(vm.id)
        assert kept is not None
        self._world.vms.update(msgspec.structs.replace(kept, build=""))
        return True

    async def remove(self, job: Job, vm: Vm) -> None:
        self._world.gone.append(vm.name)
        self._world.vms.remove(vm.id)

    async def forget(self, vm: Vm) -> None:
        self._world.vms.remove(vm.id)


class PretendedDrafts:
    """Publishes nothing; returns what it was given."""

    def __init__(self, world: "World") -> None:
        self._world = world

    async def copy_base(self, job: Job, image: Image, directory: Path, roles: Sequence[str]) -> None:
        assert "kernel" in roles
        assert "root" not in roles

    async def finish(self, job: Job, draft: Draft, *, script: bytes) -> Image:
        self._world.drafts.append(draft)
        assert draft.files.root.read_bytes() == b"flat"
        assert script.startswith(b"KEEP_ROOT=1\n")
        return draft.image


class World:
    """As much of a daemon as builds need."""

    def __init__(self, directory: Path, vms: VmStore, operations: Operations) -> None:
        self.paths = Paths(directory / "s", directory / "r", directory / "c")
        self.vms, self.operations = vms, operations
        self.commands: list[tuple[str, bytes]] = []
        self.made_of: list[str | None] = []
        self.gone: list[str] = []
        self.drafts: list[Draft] = []
        self.sleeping = asyncio.Event()
        self.modules_status = 0  # of looking for modules in the guest
        self.machines = PretendedMachines(self)
        settings = Settings()
        bundle = RuntimeBundle(self.paths, settings)
        self.service = BuildService(
            self.paths,
            settings,
            vms,
            operations,
            cast(BuildMachines, self.machines),
            bundle,
            cast(Drafts, PretendedDrafts(self)),
        )
        asyncio.run(bundle.open())

    def run(self, work: Callable[[], Awaitable[None]]) -> None:
        async def main() -> None:
            async with asyncio.timeout(30):
                await work()

        asyncio.run(main())

    def built(self, spec: BuildSpec) -> Operation:
        ended: list[Operation] = []

        async def work() -> None:
            ended.append(await self.operations.wait(self.service.build(spec).id))

        self.run(work)
        return ended[0]

    def events(self, operation: Operation) -> list[Event]:
        return self.operations.events(operation.id)

    def notes(self, operation: Operation) -> list[str]:
        return [event.data["text"] for event in self.events(operation) if event.kind is EventKind.NOTE]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with contextlib.closing(open_database(tmp_path / "db")) as database:
        made = World(tmp_path, VmStore(database), Operations(OperationStore(database)))
        make_image(made.paths, "debian", "")
        yield made


@pytest.fixture
def spec(tmp_path: Path) -> BuildSpec:
    (tmp_path / "conf").write_text("text")
    (tmp_path / "setup.sh").write_text("echo hi\n")
    return BuildSpec(
        name="tools",
        base="debian",
        packages=("jq", "tree", "jq"),
        docker=True,
        copy=(Copy(str(tmp_path / "conf"), "/etc/app/"),),
        scripts=(str(tmp_path / "setup.sh"),),
    )


def test_the_steps_come_in_order_and_the_image_says_what_it_was_made_of(world: World, spec: BuildSpec) -> None:
    done = world.built(spec)
    assert done.error is None
    stages = [stage.name for stage in done.stages]
    assert stages == [
        "recipe",
        "packages jq, tree",
        "docker",
        "copy conf to /etc/app/",
        "script setup.sh",
        "kernel modules",
        "trim",
    ]
    packages, docker, copy, script = world.commands[:4]
    assert "install -y --no-install-recommends -- jq tree" in packages[0]
    assert "export DEBIAN_FRONTEND=noninteractive" in packages[0]
    assert "docker.io" in docker[0]
    assert "enable docker" in docker[0]
    assert "-C /etc/app" in copy[0]
    assert b"conf" in copy[1]
    assert script[1] == b"echo hi\n"
    assert "export BANGER_BUILD=1" in script[0]
    (draft,) = world.drafts
    assert (draft.image.name, draft.image.parents, draft.image.managed) == ("tools", ("debian",), True)
    assert world.vms.all() == []
    assert [name.rsplit("-", 1)[0] for name in world.gone] == ["build-tools"]
    assert Path(done.result["log"]).read_text().splitlines()[0] == "== packages jq, tree"


def test_a_guest_without_modules_gets_those_of_its_image(world: World, spec: BuildSpec) -> None:
    world.modules_status = 1
    assert any("there is no /lib/modules/6.99.1-test" in note for note in world.notes(world.built(spec)))

    where, image = world.paths.image("debian"), find_image(world.paths, "debian")
    where.modules.write_bytes(b"an archive")
    parts = {**image.parts, **measure_parts(where.directory, {MODULES: where.modules})}
    where.metadata.chmod(0o644)
    where.metadata.write_bytes(msgspec.json.encode(msgspec.structs.replace(image, parts=parts)))
    world.commands.clear()
    assert world.built(msgspec.structs.replace(spec, name="other")).error is None
    (unpacked,) = [command for command, sent in world.commands if sent == b"an archive"]
    assert "tar -x" in unpacked
    assert "-C /lib/modules/6.99.1-test" in unpacked


def test_what_was_done_before_is_not_done_again(world: World, spec: BuildSpec, tmp_path: Path) -> None:
    world.built(spec)
    (tmp_path / "setup.sh").write_text("echo other\n")
    world.commands.clear()
    again = world.built(msgspec.structs.replace(spec, name="other"))
    cached = ["packages jq, tree", "docker", "copy conf to /etc/app/"]
    assert world.notes(again)[:3] == [f"cached  {title}" for title in cached]
    assert again.result["cached"] == cached
    assert world.commands[0][1] == b"echo other\n"
    assert world.made_of[1] is not None

    third = world.built(msgspec.structs.replace(spec, name="third"))
    assert len(third.result["cached"]) == 4

    (tmp_path / "conf").write_text("changed")
    fourth = world.built(msgspec.structs.replace(spec, name="fourth"))
    assert fourth.result["cached"] == cached[:2]
    fifth = world.built(msgspec.structs.replace(spec, name="fifth", cache=False))
    assert fifth.result["cached"] == []
    assert world.made_of[-1] is None


def test_a_layer_that_the_engine_cannot_use_is_said(world: World, spec: BuildSpec) -> None:
    world.built(spec)
    world.machines.qcow2 = False
    again = world.built(msgspec.structs.replace(spec, name="other"))
    assert again.result["cached"] == []
    assert "no layer is used" in world.notes(again)[0]


def test_a_step_that_fails_is_named_with_its_last_lines_and_nothing_is_left(
    world: World, spec: BuildSpec, tmp_path: Path
) -> None:
    (tmp_path / "setup.sh").write_text("exit 3\n")
    failed = world.built(spec)
    error = failed.error
    assert error is not None
    assert error["message"] == "the step 'script setup.sh' failed: it ended with status 3: it is ?[31mbroken"
    assert error["details"]["output"] == ["first line", "it is ?[31mbroken"]
    assert error["details"]["console"] == ["the console's last line"]
    log = Path(error["details"]["log"])
    assert str(log) in error["hint"]
    assert "first line" in log.read_text()
    assert "--keep-on-failure" in error["hint"]
    assert world.vms.all() == []
    assert [image.name for image in list_images(world.paths)] == ["debian"]
    assert not list(world.paths.images.glob(".tmp-*"))


def test_with_keep_on_failure_the_vm_becomes_an_ordinary_one(world: World, spec: BuildSpec, tmp_path: Path) -> None:
    (tmp_path / "setup.sh").write_text("exit 3\n")
    failed = world.built(msgspec.structs.replace(spec, keep_on_failure=True))
    (vm,) = world.vms.all()
    assert (vm.state, vm.build) == (VmState.RUNNING, "")
    assert failed.error is not None
    assert f"banger vm ssh {vm.name}" in failed.error["hint"]
    assert f"banger vm delete {vm.name}" in failed.error["hint"]
    assert world.gone == []
    assert [image.name for image in list_images(world.paths)] == ["debian"]


def test_a_step_that_takes_too_long_says_which_setting_it_is(world: World, spec: BuildSpec, tmp_path: Path) -> None:
    (tmp_path / "setup.sh").write_text("late\n")
    failed = world.built(spec)
    assert failed.error is not None
    assert failed.error["code"] == "timeout"
    assert "build_step_timeout_s" in failed.error["hint"]


def test_a_cancelled_build_leaves_nothing_even_with_keep_on_failure(
    world: World, spec: BuildSpec, tmp_path: Path
) -> None:
    (tmp_path / "setup.sh").write_text("sleep 3600\n")

    async def work() -> None:
        operation = world.service.build(msgspec.structs.replace(spec, keep_on_failure=True))
        await world.sleeping.wait()
        (vm,) = world.vms.all()
        assert (vm.build, vm.name[:12], vm.nat) == ("tools", "build-tools-", True)
        for target in ("image/tools", f"vm/{vm.name}"):
            with pytest.raises(Busy):
                world.operations.check_free(target)
        with pytest.raises(Busy):
            world.service.build(spec)
        world.operations.cancel(operation.id)
        assert (await world.operations.wait(operation.id)).state is OperationState.CANCELLED

    world.run(work)
    assert world.vms.all() == []
    assert len(world.gone) == 1
    assert not list(world.paths.images.glob(".tmp-*"))


def test_two_builds_of_one_base_do_not_meet(world: World, spec: BuildSpec) -> None:
    async def work() -> None:
        others = [msgspec.structs.replace(spec, name=name, cache=False) for name in ("a", "b")]
        operations = [world.service.build(one) for one in others]
        assert len({vm.name for vm in world.vms.all()}) == 2
        for operation in operations:
            assert (await world.operations.wait(operation.id)).error is None

    world.run(work)
    assert sorted(draft.image.name for draft in world.drafts) == ["a", "b"]


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"base": "debain"}, NotFound, "there is no image debain"),
        ({"name": "debian", "base": "other"}, NotFound, "no image other"),
        ({"packages": ("jq", "-y")}, Invalid, "'-y' is not a package name"),
        ({"scripts": ("/nowhere.sh",)}, Invalid, "No such file"),
        ({"copy": (Copy("/nowhere", "/x"),)}, Invalid, "No such file"),
        ({"scripts": ("/etc",)}, Invalid, "is no script"),
        ({"size": 1 << 20}, Invalid, "smaller than that of the image debian"),
    ],
)
def test_what_cannot_be_is_said_before_anything_starts(
    world: World, spec: BuildSpec, changes: dict[str, Any], kind: type[BangerError], message: str
) -> None:
    async def work() -> None:
        with pytest.raises(kind, match=message):
            world.service.build(msgspec.structs.replace(spec, **changes))

    world.run(work)
    assert world.vms.all() == []
    assert world.operations.all(10) == []


def test_an_image_that_is_there_and_a_distribution_that_is_not_known_are_refused(
    world: World, spec: BuildSpec, tmp_path: Path
) -> None:
    make_image(world.paths, "taken", "")

    async def work() -> None:
        with pytest.raises(Conflict, match="taken already"):
            world.service.build(msgspec.structs.replace(spec, name="taken"))
        with pytest.raises(Unsupported, match="plan9"):
            plan(spec, "plan9", world.paths, "")

    world.run(work)


def test_what_is_refreshed_in_a_guest_is_bangers_own() -> None:
    files, links = ours("systemd", {"banger/x.py": b"agent"})
    assert files["usr/lib/banger/banger/x.py"] == (b"agent", 0o644)
    assert "etc/systemd/system/banger-agent.service" in files
    assert "etc/systemd/system/sysinit.target.wants/banger-agent.service" in links
    # a recipe may have changed these
    assert not {"etc/hosts", "etc/fstab", "etc/hostname"} & files.keys()
    assert "etc/systemd/system/cron.service" not in links


def test_the_vm_of_a_build_that_the_daemon_did_not_survive_goes(tmp_path: Path) -> None:
    with contextlib.closing(open_database(tmp_path / "db")) as database:
        bench = test_vms.Bench(tmp_path, VmStore(database), Operations(OperationStore(database)))
        vm = bench.vm()
        bench.vms.update(msgspec.structs.replace(vm, state=VmState.STOPPED, process=None, build="tools"))
        other = make_vm("mine", "cafecafecafe")
        bench.vms.add(msgspec.structs.replace(other, state=VmState.STOPPED, process=None))
        for one in (vm.id, other.id):
            bench.paths.vm(one).state.mkdir(parents=True)
        lifecycle, monitor = bench.service._lifecycle, bench.service._monitor
        asyncio.run(Reconciler(bench.paths, bench.vms, bench.operations, lifecycle, monitor).run())
        assert [left.name for left in bench.vms.all()] == ["mine"]
        assert not bench.paths.vm(vm.id).state.exists()
        assert bench.paths.vm(other.id).state.exists()


def test_logs_of_forgotten_builds_go(world: World) -> None:
    world.paths.builds.mkdir(parents=True)
    old, new = world.paths.build_log("old"), world.paths.build_log("new")
    for log in (old, new):
        log.write_text("text")
    os.utime(old, (1, 1))
    asyncio.run(world.service.sweep())
    assert (old.exists(), new.exists()) == (False, True)


def test_a_disk_that_fills_up_ends_a_build_at_once(tmp_path: Path) -> None:
    paths, nobody = Paths(tmp_path / "s", tmp_path / "r", tmp_path / "c"), cast(Any, None)
    admission = Admission(paths, Settings())
    machines = BuildMachines(paths, Settings(), nobody, nobody, nobody, nobody, admission)
    vm = make_vm("build-x-0000", "0123456789ab")
    log = paths.vm(vm.id).engine_log
    log.parent.mkdir(parents=True)
    log.write_text("an older line: paused: no space left on the host's disk\n")
    begun, ended = asyncio.Event(), []

    async def work() -> None:
        begun.set()
        try:
            await asyncio.sleep(3600)
        finally:
            ended.append("ended")

    async def quick() -> int:
        return 7

    async def main() -> None:
        assert await machines.or_full(vm, quick()) == 7
        building = asyncio.create_task(machines.or_full(vm, work()))
        await begun.wait()
        with log.open("a") as file:
            file.write("WARNING paused: no space left on the host's disk for drive root\n")
        with pytest.raises(HostRequirement, match="the host's disk is full"):
            async with asyncio.timeout(20):
                await building

    asyncio.run(main())
    assert ended == ["ended"]
