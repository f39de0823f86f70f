"""What the service makes of an engine that ends."""

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from banger.config import Settings
from banger.jobs.operations import Job, Operations
from banger.model.capacity import Filesystem
from banger.model.errors import Conflict, HostRequirement
from banger.model.guest import ExecRequest
from banger.model.operation import Operation
from banger.model.vm import Vm, VmState
from banger.paths import Paths
from banger.service.admission import Admission
from banger.service.health import Checks, Monitor
from banger.service.lifecycle import Lifecycle
from banger.service.opencode import Opencode
from banger.service.vms import EngineChoice, VmService
from banger.store.db import open_database
from banger.store.operations import OperationStore
from banger.store.vms import VmStore
from banger.system.filesystems import filesystem_of
from tests.unit.guest.hybrid import listening
from tests.unit.service.pretend import PretendedEngine, disks_of, running_vm
from tests.unit.test_store import make_vm


class Bench:
    """A service over real stores; no engine runs."""

    def __init__(
        self,
        directory: Path,
        vms: VmStore,
        operations: Operations,
        filesystem: Callable[[Path], Filesystem] = filesystem_of,
    ) -> None:
        self.paths = paths = Paths(directory / "s", directory / "r", directory / "c")
        settings = Settings()
        self.vms, self.operations = vms, operations
        self.vms.add(make_vm("a", "0123456789ab"))
        opencode = Opencode(paths, settings)
        checks = Checks(paths, opencode)
        admission = Admission(paths, settings, filesystem)
        lifecycle = Lifecycle(
            paths, settings, vms, EngineChoice(paths), opencode, checks, admission, disks_of(paths, operations)
        )
        monitor = Monitor(checks, 60, vms.get, lambda *_: None)
        self.service = VmService(paths, vms, operations, lifecycle, monitor, opencode)

    def vm(self) -> Vm:
        return self.vms.find("a")


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with contextlib.closing(open_database(tmp_path / "db")) as database:
        yield Bench(tmp_path, VmStore(database), Operations(OperationStore(database)))


@pytest.mark.parametrize(
    ("status", "state", "said"),
    [
        (0, VmState.STOPPED, "powered off"),
        (1, VmState.FAILED, "status 1"),
        (-9, VmState.FAILED, "status -9"),
        (None, VmState.FAILED, "not known"),
    ],
)
def test_an_engines_end_is_told_as_it_was(bench: Bench, status: int | None, state: VmState, said: str) -> None:
    bench.service.engine_ended("0123456789ab", status)
    assert (bench.vm().state, bench.vm().process, bench.vm().started_at) == (state, None, None)
    assert said in bench.vm().problem


def test_an_engine_that_ends_during_an_operation_is_noticed_all_the_same(bench: Bench) -> None:
    """The operation may be cancelled just then, and nobody else would ever say that the machine is gone."""

    async def work(_: Job) -> None:
        bench.service.engine_ended("0123456789ab", 0)

    async def main() -> None:
        await bench.operations.wait(bench.operations.begin("vm.stop", "vm/a", work).id)

    asyncio.run(main())
    assert bench.vm().state is VmState.STOPPED


def test_the_end_of_a_machine_that_is_stopped_or_gone_changes_nothing(bench: Bench) -> None:
    bench.service.engine_ended("0123456789ab", 0)
    bench.service.engine_ended("0123456789ab", 1)
    bench.service.engine_ended("nobody", 1)
    assert bench.vm().state is VmState.STOPPED


def test_a_vm_whose_disk_is_not_there_yet_is_listed_all_the_same(bench: Bench) -> None:
    """A create that has only begun, or a delete that has nearly ended."""
    assert [vm["disk_allocated_bytes"] for vm in bench.service.list()] == [0]


FULL = Filesystem(total=1 << 40, used=1 << 40, free=3 << 20)
AGAIN = "the guest was resumed and paused again at once: no space left on the host's disk for drive work"


def paused(bench: Bench, problem: str = "") -> None:
    vm = running_vm(state=VmState.PAUSED, problem=problem)
    bench.vms.update(vm)
    for folder in (bench.paths.vm(vm.id).state, bench.paths.vm(vm.id).runtime):
        folder.mkdir(parents=True)


def run_with(bench: Bench, engine: PretendedEngine, begin: Callable[[], Operation]) -> Operation:
    """The operation's end, with that engine behind the VM and no agent."""

    async def main() -> Operation:
        async with listening(bench.paths.vm("0123456789ab").api_socket, engine.answer):
            return await bench.operations.wait(begin().id)

    return asyncio.run(main())


def test_a_paused_vm_is_not_resumed_onto_a_full_disk(tmp_path: Path) -> None:
    with contextlib.closing(open_database(tmp_path / "db")) as database:
        bench = Bench(tmp_path, VmStore(database), Operations(OperationStore(database)), lambda _: FULL)
        paused(bench, "the host's disk is full: 1 MiB free")
        with pytest.raises(HostRequirement, match="too little room"):
            bench.service.resume("a")
        with pytest.raises(Conflict, match="a is paused, not running: the host's disk is full"):
            asyncio.run(bench.service.exec("a", ExecRequest(argv=("true",))))
        assert (bench.vm().state, bench.vm().problem) == (VmState.PAUSED, "the host's disk is full: 1 MiB free")


@pytest.mark.parametrize("verb", ["resume", "stop"])
def test_a_guest_that_is_paused_again_at_once_is_told_as_an_error(bench: Bench, verb: str) -> None:
    paused(bench, "the host's disk is full: 1 MiB free")
    engine = PretendedEngine()
    engine.state, engine.fault = "Paused", AGAIN
    begin = {"resume": lambda: bench.service.resume("a"), "stop": lambda: bench.service.stop("a", force=False)}[verb]
    ended = run_with(bench, engine, begin)
    assert ended.error is not None
    assert ended.error["code"] == "host_requirement"
    assert ended.error["message"].startswith("a was resumed and paused again at once: the host's disk is full")
    assert "vm stop --force a" in ended.error["hint"]
    assert bench.vm().state is VmState.PAUSED
    assert "the host's disk is full" in bench.vm().problem


def test_a_vm_that_is_paused_for_a_problem_keeps_it_until_it_runs_on(bench: Bench) -> None:
    paused(bench)
    bench.vms.update(msgspec.structs.replace(bench.vm(), state=VmState.RUNNING))
    engine = PretendedEngine()
    ended = run_with(bench, engine, lambda: bench.service.pause("0123456789ab", "the host's disk is full"))
    assert ended.error is None
    assert (bench.vm().state, bench.vm().problem, engine.state) == (
        VmState.PAUSED,
        "the host's disk is full",
        "Paused",
    )
    run_with(bench, engine, lambda: bench.service.resume("a"))
    assert (bench.vm().state, bench.vm().problem, engine.state) == (VmState.RUNNING, "", "Running")


def test_a_guest_that_is_paused_again_before_it_is_reached_is_told_as_an_error(bench: Bench) -> None:
    paused(bench, "the host's disk is full: 1 MiB free")
    engine = PretendedEngine()
    engine.state, engine.relapses = "Paused", True
    ended = run_with(bench, engine, lambda: bench.service.resume("a"))
    assert ended.error is not None
    assert "paused again at once: the host's disk is full" in ended.error["message"]
    assert bench.vm().state is VmState.PAUSED
    assert "the host's disk is full" in bench.vm().problem
