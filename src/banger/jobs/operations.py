"""Operations: begin returns at once; stages are stored events; success clears the undo stack, all else unwinds it."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from banger.jobs.output import OutputGate
from banger.model.errors import BangerError, Busy, Cancelled, Internal, Timeout
from banger.model.names import new_id
from banger.model.operation import Event, EventKind, Operation, OperationState
from banger.model.text import harmless
from banger.store.operations import OperationStore

PROGRESS_EVERY_S = 0.25
log = logging.getLogger(__name__)

Work = Callable[["Job"], Awaitable[Any]]


class Job:
    """What an operation's work is given: stages, progress, notes, and the undo stack.

    `if_cancelled` is the hint for a person whose operation was cancelled; work that leaves something may change it.
    """

    def __init__(
        self,
        operation: Operation,
        emit: Callable[[EventKind, dict[str, Any]], None],
        release: Callable[[str], None] = lambda target: None,
    ) -> None:
        self.operation = operation
        self._emit = emit
        self._release = release
        self._last_progress = 0.0
        self._output = OutputGate(lambda data: emit(EventKind.OUTPUT, data))
        self._undo = AsyncExitStack()
        self.if_cancelled = "nothing it made is left"

    @asynccontextmanager
    async def stage(self, name: str, *, deadline_s: float | None = None) -> AsyncIterator[None]:
        """A named, timed stage. Raises `Timeout` when it takes longer than its deadline in seconds."""
        begun = time.monotonic()
        self._emit(EventKind.STAGE_BEGIN, {"stage": name})
        ok = False
        try:
            async with asyncio.timeout(deadline_s) as deadline:
                yield
            ok = True
        except TimeoutError as error:
            if not deadline.expired():
                raise
            raise Timeout(f"the stage {name!r} took longer than {deadline_s:g} s") from error
        finally:
            self._output.flush()
            self._emit(EventKind.STAGE_END, {"stage": name, "seconds": time.monotonic() - begun, "ok": ok})

    def progress(self, done: int, total: int | None, unit: str) -> None:
        """How far the present stage is; reports are thinned, the last one (done == total) is always kept."""
        now = time.monotonic()
        if done == total or now - self._last_progress >= PROGRESS_EVERY_S:
            self._last_progress = now
            self._emit(EventKind.PROGRESS, {"done": done, "total": total, "unit": unit})

    def note(self, text: str) -> None:
        """One line for the person who watches."""
        self._emit(EventKind.NOTE, {"text": text})

    def output(self, text: str) -> None:
        """One line that a program of the present stage has printed; a flood of them is thinned."""
        self._output.line(harmless(text))

    def release(self, target: str) -> None:
        """Let others work on a target that this operation holds, and needs no more, nor to undo anything."""
        self._release(target)

    def undo(self, text: str, action: Callable[[], Awaitable[None]]) -> None:
        """Push what takes the step just done back; it runs, newest first, unless the work succeeds."""

        async def step() -> None:
            self._emit(EventKind.UNDO, {"text": text})
            await action()

        self._undo.push_async_callback(step)

    def keep(self) -> None:
        """What was made so far stays, whatever comes."""
        self._undo.pop_all()

    async def run(self, work: Work) -> Any:
        """Run the work; on failure or cancellation unwind the undo stack before the error goes on."""
        async with self._undo:
            result = await work(self)
            self._undo.pop_all()
            return result


class Operations:
    """All operations of this daemon, one at a time per target."""

    def __init__(self, store: OperationStore) -> None:
        self._store = store
        self._tasks: dict[str, asyncio.Task[Any]] = {}
        self._holders: dict[str, Operation] = {}
        self._wakers: dict[str, asyncio.Event] = {}
        self._sequence: dict[str, int] = {}
        self._stopping: set[str] = set()
        self._closing = False

    def check_free(self, target: str) -> None:
        """Raise `Busy`, naming the operation, when one works on this target."""
        if holder := self._holders.get(target):
            raise Busy(
                f"{target} is busy: {holder.kind} is under way",
                hint=f"wait with `banger operation wait {holder.id}`, or cancel it",
                details={"operation": holder.id},
            )

    def begin(self, kind: str, target: str, work: Work, *, also: Sequence[str] = ()) -> Operation:
        """Start an operation, which holds its target and what `also` names; its record comes at once. Raises `Busy`."""
        if self._closing:
            raise Busy("the daemon is stopping", hint="run the command again in a moment")
        held = (target, *also)
        for one in held:
            self.check_free(one)
        operation = Operation(
            id=new_id(), kind=kind, target=target, state=OperationState.RUNNING, created_at=time.time()
        )
        self._store.add(operation)
        self._holders.update(dict.fromkeys(held, operation))
        self._wakers[operation.id] = asyncio.Event()
        self._sequence[operation.id] = 0
        job = Job(
            operation,
            lambda event, data: self._emit(operation.id, event, data),
            lambda target: self._let_go(operation, target),
        )
        task = asyncio.create_task(job.run(work), name=f"{kind} {target}")
        self._tasks[operation.id] = task
        task.add_done_callback(lambda ended: self._finish(operation, job, ended))
        return operation

    def _let_go(self, operation: Operation, target: str) -> None:
        if (holder := self._holders.get(target)) is not None and holder.id == operation.id:
            del self._holders[target]

    def _emit(self, operation_id: str, kind: EventKind, data: dict[str, Any]) -> None:
        self._sequence[operation_id] += 1
        self._store.add_event(
            operation_id, Event(seq=self._sequence[operation_id], at=time.time(), kind=kind, data=data)
        )
        waker, self._wakers[operation_id] = self._wakers[operation_id], asyncio.Event()
        waker.set()

    def _finish(self, operation: Operation, job: Job, task: asyncio.Task[Any]) -> None:
        state, result, error = OperationState.DONE, None, None
        if task.cancelled():
            state = OperationState.INTERRUPTED if self._closing else OperationState.CANCELLED
            error = Cancelled(f"{operation.kind} was {state}", hint=job.if_cancelled).to_dict()
        elif (failure := task.exception()) is not None:
            state, error = OperationState.FAILED, self._describe(operation, failure).to_dict()
        else:
            result = task.result()
        self._store.finish(operation.id, state, time.time(), result=result, error=error)
        self._holders = {target: holder for target, holder in self._holders.items() if holder.id != operation.id}
        self._tasks.pop(operation.id, None)
        self._stopping.discard(operation.id)
        self._emit(operation.id, EventKind.END, {"state": state, "error": error})
        self._wakers.pop(operation.id).set()
        self._sequence.pop(operation.id)

    def _describe(self, operation: Operation, failure: BaseException) -> BangerError:
        if isinstance(failure, BangerError):
            return failure
        log.error("operation %s (%s) met a defect", operation.id, operation.kind, exc_info=failure)
        if isinstance(failure, OSError):
            return BangerError(f"{operation.kind} failed: {failure}", hint="`banger daemon status` names the log")
        return Internal(
            f"{operation.kind} met a defect of banger's: {type(failure).__name__}: {failure}",
            hint="`banger daemon status` names the log that has the details",
        )

    def all(self, limit: int) -> list[Operation]:
        """The newest operations first."""
        return self._store.all(limit)

    def find(self, reference: str) -> Operation:
        """The operation with this id or unambiguous prefix. Raises `NotFound`."""
        return self._store.find(reference)

    def events(self, operation_id: str) -> list[Event]:
        """All that was told of an operation so far."""
        return self._store.events(operation_id)

    def under_way(self) -> list[Operation]:
        """Those that have begun and not ended."""
        return list({holder.id: holder for holder in self._holders.values()}.values())

    @property
    def running(self) -> int:
        return len(self._tasks)

    async def follow(self, operation_id: str, after: int = 0) -> AsyncIterator[Event]:
        """Stored events above `after`, then live ones, until the operation's end."""
        while True:
            waker = self._wakers.get(operation_id)
            for event in self._store.events(operation_id, after):
                after = event.seq
                yield event
            if waker is None:
                return
            await waker.wait()

    async def wait(self, operation_id: str) -> Operation:
        """The record once the operation has ended."""
        async for _ in self.follow(operation_id):
            pass
        return self._store.find(operation_id)

    def cancel(self, operation_id: str) -> None:
        """Ask a running operation to stop and unwind; once, so that unwinding is never cut short."""
        task = self._tasks.get(operation_id)
        if task is not None and operation_id not in self._stopping:
            self._stopping.add(operation_id)
            # after the task's first step, which is queued already: work that has begun has pushed its undo
            asyncio.get_running_loop().call_soon(task.cancel)

    async def close(self) -> None:
        """Cancel everything and wait until it has unwound."""
        self._closing = True
        tasks = list(self._tasks.values())
        for operation_id in list(self._tasks):
            self.cancel(operation_id)
        await asyncio.gather(*tasks, return_exceptions=True)

    def forget_older(self, seconds: float) -> None:
        """Drop results that ended longer ago than this."""
        self._store.remove_older(time.time() - seconds)

    def mark_interrupted(self) -> list[Operation]:
        """At start: operations that a dead daemon left running are `interrupted`; the caller reconciles."""
        left = self._store.running()
        error = Cancelled("the daemon ended during this operation", hint="run the command again").to_dict()
        for operation in left:
            last = self._store.events(operation.id)
            self._store.finish(operation.id, OperationState.INTERRUPTED, time.time(), result=None, error=error)
            self._store.add_event(
                operation.id,
                Event(
                    seq=last[-1].seq + 1 if last else 1,
                    at=time.time(),
                    kind=EventKind.END,
                    data={"state": OperationState.INTERRUPTED, "error": error},
                ),
            )
        return left
