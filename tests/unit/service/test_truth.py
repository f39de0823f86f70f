"""A VM whose engine has paused it says so soon, with the reason; real stores, logs and watchers, a pretended engine."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from banger.config import Settings
from banger.jobs.operations import Job, Operations
from banger.model.capacity import Filesystem
from banger.model.sizes import GIB, MIB
from banger.model.vm import Vm, VmState
from banger.service.admission import Admission
from banger.service.health import Monitor
from banger.service.pressure import Pressure
from banger.service.truth import Truth
from banger.store.db import open_database
from banger.store.operations import OperationStore
from banger.store.vms import VmStore
from tests.unit.service.pretend import VM_ID, PretendedEngine, paths_in, pretended, running_vm

FULL = "paused: no space left on the host's disk for drive work"


class Bench:
    """A monitor whose period is too long to matter, over one VM; `free` bytes of disk."""

    def __init__(self, directory: Path, vms: VmStore, operations: Operations) -> None:
        self.paths, self.vms, self.operations = paths_in(directory), vms, operations
        self.engine = PretendedEngine()
        self.free = 100 * GIB
        self.pressed: list[tuple[str, str]] = []
        admission = Admission(self.paths, Settings(), self._filesystem)
        self.truth = Truth(self.paths, vms, operations, admission)
        self.pressure = Pressure(admission, self.truth, vms.get, lambda *words: self.pressed.append(words))
        self.log = self.paths.vm(VM_ID).engine_log

    def _filesystem(self, _: Path) -> Filesystem:
        return Filesystem(total=200 * GIB, used=200 * GIB - self.free, free=self.free)

    @property
    def vm(self) -> Vm:
        return self.vms.find("a")

    @contextlib.asynccontextmanager
    async def monitored(self, directory: Path, **changes: object) -> AsyncIterator[Monitor]:
        self.vms.add(running_vm(**changes))
        async with asyncio.timeout(30), pretended(directory, engine=self.engine) as (checks, _, _):
            self.say("running on tcg (because)")
            monitor = Monitor(checks, 600, self.vms.get, lambda *_: None, self.truth, self.pressure)
            monitor.watch(self.vm)
            await self.until(lambda: monitor.status(self.vm) != "unknown")
            try:
                yield monitor
            finally:
                await monitor.close()

    def say(self, text: str) -> None:
        """A line in the engine's log."""
        with self.log.open("a") as file:
            file.write(f"2026-11-26T06:17:38.570648909 [{VM_ID}:main] {text}\n")

    async def until(self, true: Callable[[], bool]) -> None:
        while not true():  # noqa: ASYNC110 (the record has no event to wait for)
            await asyncio.sleep(0.01)

    def stop_by_itself(self, *, logged: bool = True) -> None:
        """As banger-vmm when a write finds no space."""
        self.engine.state = "Paused"
        self.free = 3 * MIB
        if logged:
            self.say(FULL)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with contextlib.closing(open_database(tmp_path / "db")) as database:
        yield Bench(tmp_path, VmStore(database), Operations(OperationStore(database)))


def problem(bench: Bench) -> str:
    return f"the host's disk is full: 3 MiB free at {bench.paths.state}"


def test_a_full_disk_is_told_as_soon_as_the_engine_logs_it(bench: Bench, tmp_path: Path) -> None:
    async def main() -> None:
        async with bench.monitored(tmp_path) as monitor:
            assert bench.vm.state is VmState.RUNNING
            asked = len(bench.engine.asked)
            bench.say("GET / -> 200")
            bench.stop_by_itself()
            await bench.until(lambda: bench.vm.state is VmState.PAUSED)
            assert bench.vm.problem == problem(bench)
            assert len(bench.engine.asked) == asked + 1, "other lines are no reason to ask"
            health = await monitor.check(bench.vm)
            failed = health.first_failure
            assert failed is not None
            assert failed.detail == f"the VM is paused: {problem(bench)}"
            assert "vm resume a" in failed.hint
            assert monitor.status(bench.vm) == "unhealthy"

    asyncio.run(main())


def test_a_disk_so_full_that_the_log_cannot_grow_is_noticed_all_the_same(bench: Bench, tmp_path: Path) -> None:
    async def main() -> None:
        async with bench.monitored(tmp_path):
            bench.stop_by_itself(logged=False)
            await bench.until(lambda: bench.vm.state is VmState.PAUSED)
            assert bench.vm.problem == problem(bench)
            assert bench.pressed == [], "its engine does that"

    asyncio.run(main())


def test_what_happened_while_no_daemon_ran_is_told_by_the_first_check(bench: Bench, tmp_path: Path) -> None:
    async def main() -> None:
        bench.engine.state = "Paused"
        bench.log.parent.mkdir(parents=True)
        bench.say(FULL)
        bench.free = 3 * MIB
        async with bench.monitored(tmp_path) as monitor:
            assert (bench.vm.state, bench.vm.problem) == (VmState.PAUSED, problem(bench))
            # and that it runs again, as when the daemon was killed within a resume
            bench.engine.state = "Running"
            await monitor.check(bench.vm)
            assert (bench.vm.state, bench.vm.problem) == (VmState.RUNNING, "")

    asyncio.run(main())


def test_a_pause_that_has_nothing_to_do_with_the_disk_is_not_called_so(bench: Bench, tmp_path: Path) -> None:
    async def main() -> None:
        async with bench.monitored(tmp_path) as monitor:
            bench.say(FULL)
            bench.say("resumed")
            bench.say("qemu: paused: no space left on the host's disk, says the guest")
            bench.engine.state = "Paused"
            await monitor.check(bench.vm)
            assert (bench.vm.state, bench.vm.problem) == (VmState.PAUSED, "its engine paused it")

    asyncio.run(main())


def test_an_operation_writes_the_record_alone_and_is_waited_for(bench: Bench, tmp_path: Path) -> None:
    async def main() -> None:
        async with bench.monitored(tmp_path) as monitor:
            going_on = asyncio.Event()

            async def work(_: Job) -> None:
                await going_on.wait()

            operation = bench.operations.begin("vm.exec", "vm/a", work)
            bench.stop_by_itself()
            await monitor.check(bench.vm)
            assert bench.vm.state is VmState.RUNNING
            going_on.set()
            await bench.operations.wait(operation.id)
            await bench.until(lambda: bench.vm.state is VmState.PAUSED)

    asyncio.run(main())


def test_what_an_engine_said_before_the_record_changed_is_not_believed(bench: Bench, tmp_path: Path) -> None:
    async def main() -> None:
        async with bench.monitored(tmp_path):
            before = bench.vm
            bench.vms.update(msgspec.structs.replace(before, state=VmState.PAUSED))
            assert (await bench.truth.of(before)).state is VmState.PAUSED
            assert (bench.vm.state, bench.engine.state) == (VmState.PAUSED, "Running")

    asyncio.run(main())


def test_an_engine_that_would_go_on_is_paused_before_the_disk_is_full(bench: Bench, tmp_path: Path) -> None:
    async def main() -> None:
        async with bench.monitored(tmp_path, engine="firecracker", engine_version="1.15.1"):
            bench.free = 255 * MIB
            await bench.until(lambda: bool(bench.pressed))
            assert bench.pressed == [(VM_ID, f"the host's disk is full: 255 MiB free at {bench.paths.state}")]
            assert bench.vm.state is VmState.RUNNING, "the operation pauses it"

    asyncio.run(main())
