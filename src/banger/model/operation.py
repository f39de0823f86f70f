"""Operations: long work that a person can watch, wait for, and cancel."""

from enum import StrEnum
from typing import Any

import msgspec


class OperationState(StrEnum):
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"
    INTERRUPTED = "interrupted"


class EventKind(StrEnum):
    """What an event says; its data is beside each name.

    stage_begin  {"stage"}                       stage_end  {"stage", "seconds", "ok"}
    progress     {"done", "total" | null, "unit"}  note       {"text"}
    undo         {"text"}                        end        {"state", "error" | null}
    output       {"text", "skipped"}: a line that a program printed, and how many before it are not told
    """

    STAGE_BEGIN = "stage_begin"
    STAGE_END = "stage_end"
    PROGRESS = "progress"
    NOTE = "note"
    OUTPUT = "output"
    UNDO = "undo"
    END = "end"


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """One step of an operation; `seq` counts from 1 within it, `at` is seconds since the epoch."""

    seq: int
    at: float
    kind: EventKind
    data: dict[str, Any]


class Stage(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    seconds: float
    ok: bool


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """An operation's record. `target` names what it works on, such as `vm/demo`. Times are seconds since the epoch."""

    id: str
    kind: str
    target: str
    state: OperationState
    created_at: float
    finished_at: float | None = None
    stages: tuple[Stage, ...] = ()
    result: Any = None
    error: dict[str, Any] | None = None
