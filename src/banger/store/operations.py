"""Operation records and their events."""

import sqlite3
from typing import Any

import msgspec

from banger.model.errors import NotFound
from banger.model.operation import Event, EventKind, Operation, OperationState, Stage

_COLUMNS = "id, kind, target, state, created_at, finished_at, result, error"


def _json(value: Any) -> bytes | None:
    return None if value is None else msgspec.json.encode(value)


def _plain(blob: bytes | None) -> Any:
    return None if blob is None else msgspec.json.decode(blob)


class OperationStore:
    """Rows of `operations` and `events`."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def add(self, operation: Operation) -> None:
        self._connection.execute(
            "INSERT INTO operations (id, kind, target, state, created_at) VALUES (?, ?, ?, ?, ?)",
            (operation.id, operation.kind, operation.target, operation.state, operation.created_at),
        )

    def finish(self, operation_id: str, state: OperationState, at: float, *, result: Any, error: Any) -> None:
        self._connection.execute(
            "UPDATE operations SET state = ?, finished_at = ?, result = ?, error = ? WHERE id = ?",
            (state, at, _json(result), _json(error), operation_id),
        )

    def add_event(self, operation_id: str, event: Event) -> None:
        self._connection.execute(
            "INSERT INTO events (operation, seq, at, kind, data) VALUES (?, ?, ?, ?, ?)",
            (operation_id, event.seq, event.at, event.kind, _json(event.data)),
        )

    def events(self, operation_id: str, after: int = 0) -> list[Event]:
        """Events with a sequence number above `after`, in order."""
        rows = self._connection.execute(
            "SELECT seq, at, kind, data FROM events WHERE operation = ? AND seq > ? ORDER BY seq",
            (operation_id, after),
        )
        return [Event(seq=seq, at=at, kind=EventKind(kind), data=_plain(data)) for seq, at, kind, data in rows]

    def find(self, reference: str) -> Operation:
        """The operation with this id or unambiguous prefix of it. Raises `NotFound`."""
        rows = self._connection.execute(
            f"SELECT {_COLUMNS} FROM operations WHERE ? <> '' AND substr(id, 1, length(?)) = ? LIMIT 2",
            (reference, reference, reference),
        ).fetchall()
        if len(rows) != 1:
            raise NotFound(f"there is no operation {reference!r}", hint="`banger operation list` shows what there is")
        return self._operation(rows[0])

    def all(self, limit: int = 100) -> list[Operation]:
        """The newest operations first."""
        rows = self._connection.execute(
            f"SELECT {_COLUMNS} FROM operations ORDER BY created_at DESC LIMIT ?", (limit,)
        ).fetchall()
        return [self._operation(row) for row in rows]

    def running(self) -> list[Operation]:
        rows = self._connection.execute(
            f"SELECT {_COLUMNS} FROM operations WHERE state = ?", (OperationState.RUNNING,)
        ).fetchall()
        return [self._operation(row) for row in rows]

    def remove_older(self, than: float) -> None:
        self._connection.execute("DELETE FROM operations WHERE finished_at < ?", (than,))

    def _operation(self, row: tuple[Any, ...]) -> Operation:
        identifier, kind, target, state, created_at, finished_at, result, error = row
        # of thousands of events, a few
        ends = self._connection.execute(
            "SELECT data FROM events WHERE operation = ? AND kind = ? ORDER BY seq", (identifier, EventKind.STAGE_END)
        )
        stages = tuple(
            Stage(name=end["stage"], seconds=end["seconds"], ok=end["ok"]) for end in (_plain(data) for (data,) in ends)
        )
        return Operation(
            id=identifier,
            kind=kind,
            target=target,
            state=OperationState(state),
            created_at=created_at,
            finished_at=finished_at,
            stages=stages,
            result=_plain(result),
            error=_plain(error),
        )
