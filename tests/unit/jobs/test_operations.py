"""Operations: stored stages, undo on failure and cancel, busy targets, replay."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from banger.jobs.operations import Job, Operations
from banger.model.errors import Busy, Conflict, NotFound
from banger.model.operation import Event, EventKind, Operation, OperationState
from banger.store.db import open_database
from banger.store.operations import OperationStore


@pytest.fixture
def store(tmp_path: Path) -> Iterator[OperationStore]:
    with contextlib.closing(open_database(tmp_path / "db")) as database:
        yield OperationStore(database)


def run(store: OperationStore, scenario: Callable[[Operations], Awaitable[None]]) -> None:
    async def main() -> None:
        operations = Operations(store)
        async with asyncio.timeout(10):
            await scenario(operations)
            await operations.close()

    asyncio.run(main())


def kinds(events: list[Event]) -> list[EventKind]:
    return [event.kind for event in events]


def test_success_stores_stages_result_and_numbers_without_gaps(store: OperationStore) -> None:
    async def work(job: Job) -> str:
        job.undo("never", _fail)
        async with job.stage("one"):
            job.note("half-way")
        async with job.stage("two"):
            pass
        return "made"

    async def scenario(operations: Operations) -> None:
        done = await operations.wait(operations.begin("test", "vm/a", work).id)
        assert (done.state, done.result, done.error) == (OperationState.DONE, "made", None)
        assert [(stage.name, stage.ok) for stage in done.stages] == [("one", True), ("two", True)]
        events = store.events(done.id)
        assert [event.seq for event in events] == list(range(1, len(events) + 1))
        assert EventKind.UNDO not in kinds(events)
        assert store.events(done.id, after=events[-2].seq) == events[-1:]

    run(store, scenario)


async def _fail() -> None:
    raise AssertionError("an undo ran after success")


@pytest.mark.parametrize("how", ["error", "cancel", "shutdown"])
def test_undo_runs_newest_first_whatever_ends_it(store: OperationStore, how: str) -> None:
    undone: list[str] = []
    entered = asyncio.Event()

    async def work(job: Job) -> None:
        for name in ("first", "second"):

            async def undo(name: str = name) -> None:
                await asyncio.sleep(0)
                undone.append(name)

            job.undo(name, undo)
        entered.set()
        if how == "error":
            raise Conflict("no", hint="do that")
        await asyncio.Event().wait()

    async def scenario(operations: Operations) -> None:
        operation = operations.begin("test", "vm/a", work)
        await entered.wait()
        if how == "cancel":
            operations.cancel(operation.id)
            operations.cancel(operation.id)  # impatience does not cut the unwinding short
        if how == "shutdown":
            await operations.close()
        ended = await operations.wait(operation.id)
        expected = {"error": OperationState.FAILED, "cancel": OperationState.CANCELLED}
        assert ended.state is expected.get(how, OperationState.INTERRUPTED)
        assert undone == ["second", "first"]
        assert ended.error is not None
        assert ended.error["hint"]

    run(store, scenario)


def test_cancel_in_the_same_turn_still_undoes_what_begin_made(store: OperationStore) -> None:
    undone: list[str] = []

    async def work(job: Job) -> None:
        async def undo() -> None:
            undone.append("row")

        job.undo("row", undo)
        await asyncio.Event().wait()

    async def scenario(operations: Operations) -> None:
        operation = operations.begin("test", "vm/a", work)
        operations.cancel(operation.id)
        await operations.wait(operation.id)
        assert undone == ["row"]

    run(store, scenario)


def test_a_failing_undo_does_not_stop_the_others(store: OperationStore) -> None:
    undone: list[str] = []

    async def work(job: Job) -> None:
        async def good() -> None:
            undone.append("good")

        async def bad() -> None:
            raise OSError("disk gone")

        job.undo("good", good)
        job.undo("bad", bad)
        raise Conflict("no")

    async def scenario(operations: Operations) -> None:
        ended = await operations.wait(operations.begin("test", "vm/a", work).id)
        assert ended.state is OperationState.FAILED
        assert undone == ["good"]

    run(store, scenario)


def test_a_busy_target_names_its_operation_and_is_free_afterwards(store: OperationStore) -> None:
    release = asyncio.Event()

    async def work(job: Job) -> None:
        await release.wait()

    async def scenario(operations: Operations) -> None:
        first = operations.begin("vm.start", "vm/a", work)
        with pytest.raises(Busy) as caught:
            operations.begin("vm.stop", "vm/a", work)
        assert caught.value.details["operation"] == first.id
        assert first.id in caught.value.hint
        operations.begin("vm.stop", "vm/b", work)
        release.set()
        await operations.wait(first.id)
        operations.begin("vm.stop", "vm/a", work)

    run(store, scenario)


def test_a_target_that_is_needed_no_more_is_free_before_the_end_and_only_of_its_holder(store: OperationStore) -> None:
    going, release = asyncio.Event(), asyncio.Event()

    async def work(job: Job) -> None:
        job.release("vm/b")  # which another holds
        job.release("vm/a")
        going.set()
        await release.wait()

    async def other(job: Job) -> None:
        await release.wait()

    async def scenario(operations: Operations) -> None:
        operations.begin("vm.start", "vm/b", other)
        first = operations.begin("image.commit", "image/i", work, also=("vm/a",))
        await going.wait()
        for busy in ("vm/b", "image/i"):
            with pytest.raises(Busy):
                operations.check_free(busy)
        second = operations.begin("vm.start", "vm/a", other)
        release.set()
        await operations.wait(first.id)
        await operations.wait(second.id)
        operations.check_free("vm/a")

    run(store, scenario)


def test_a_stage_past_its_deadline_is_a_timeout_that_names_it(store: OperationStore) -> None:
    async def work(job: Job) -> None:
        async with job.stage("slow", deadline_s=0.01):
            await asyncio.Event().wait()

    async def scenario(operations: Operations) -> None:
        ended = await operations.wait(operations.begin("test", "vm/a", work).id)
        assert ended.error is not None
        assert (ended.error["code"], "slow" in ended.error["message"]) == ("timeout", True)
        assert [stage.ok for stage in ended.stages] == [False]

    run(store, scenario)


def test_a_defect_becomes_an_internal_error_not_a_stuck_operation(store: OperationStore) -> None:
    async def work(job: Job) -> None:
        raise ZeroDivisionError("oops")

    async def scenario(operations: Operations) -> None:
        ended = await operations.wait(operations.begin("test", "vm/a", work).id)
        assert ended.error is not None
        assert ended.error["code"] == "internal"
        operations.check_free("vm/a")

    run(store, scenario)


def test_followers_see_stored_events_then_live_ones_each_once(store: OperationStore) -> None:
    steps = [asyncio.Event() for _ in range(3)]

    async def work(job: Job) -> None:
        for number, step in enumerate(steps):
            await step.wait()
            job.note(str(number))

    async def scenario(operations: Operations) -> None:
        operation = operations.begin("test", "vm/a", work)

        async def collect(after: int) -> list[int]:
            return [event.seq async for event in operations.follow(operation.id, after)]

        early = asyncio.create_task(collect(0))
        steps[0].set()
        await asyncio.sleep(0.01)
        late = asyncio.create_task(collect(1))
        for step in steps[1:]:
            step.set()
            await asyncio.sleep(0)
        assert await early == [1, 2, 3, 4]
        assert await late == [2, 3, 4]
        assert await collect(3) == [4]

    run(store, scenario)


def test_what_a_dead_daemon_left_running_is_interrupted_with_an_end_event(store: OperationStore) -> None:
    left = Operation(id="aa11", kind="vm.create", target="vm/a", state=OperationState.RUNNING, created_at=1.0)
    store.add(left)
    store.add_event(left.id, Event(seq=1, at=1.0, kind=EventKind.NOTE, data={"text": "begun"}))

    async def scenario(operations: Operations) -> None:
        assert [operation.id for operation in operations.mark_interrupted()] == ["aa11"]
        assert operations.find("aa").state is OperationState.INTERRUPTED
        assert [event.seq async for event in operations.follow("aa11", 1)] == [2]
        assert operations.mark_interrupted() == []

    run(store, scenario)


def test_results_are_forgotten_after_their_time_only(store: OperationStore) -> None:
    async def work(job: Job) -> None:
        return None

    async def scenario(operations: Operations) -> None:
        done = await operations.wait(operations.begin("test", "vm/a", work).id)
        operations.forget_older(3600)
        assert operations.find(done.id) == done
        operations.forget_older(-1)
        with pytest.raises(NotFound):
            operations.find(done.id)

    run(store, scenario)
