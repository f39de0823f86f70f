"""Ctrl-C while an operation is begun: it is cancelled as if it had come a moment later."""

import os
import signal
import time
from collections.abc import Iterator
from typing import cast

import pytest

from banger.cli.follow import follow
from banger.client.api import Client
from banger.model.errors import Cancelled
from banger.model.operation import Event, EventKind, Operation, OperationState

RUNNING = Operation(id="0123456789ab", kind="vm.create", target="vm/a", state=OperationState.RUNNING, created_at=0.0)
ENDED = Operation(
    id=RUNNING.id,
    kind=RUNNING.kind,
    target=RUNNING.target,
    state=OperationState.CANCELLED,
    created_at=0.0,
    error=Cancelled("vm.create was cancelled").to_dict(),
)


class Pretended:
    """A daemon with one operation, which ends when it is cancelled."""

    def __init__(self) -> None:
        self.cancelled: list[str] = []

    def follow(self, reference: str, after: int = 0) -> Iterator[Event]:
        assert self.cancelled, "it is followed although it was to be cancelled"
        yield Event(seq=1, at=time.time(), kind=EventKind.END, data={"state": "cancelled", "error": None})

    def cancel_operation(self, reference: str) -> Operation:
        self.cancelled.append(reference)
        return RUNNING

    def show_operation(self, reference: str) -> Operation:
        return ENDED


def interrupted(times: int) -> Operation:
    for _ in range(times):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)  # the handler runs between two bytecodes
    return RUNNING


def test_one_waits_until_there_is_something_to_cancel(capsys: pytest.CaptureFixture[str]) -> None:
    before, daemon = signal.getsignal(signal.SIGINT), Pretended()
    with pytest.raises(Cancelled):
        follow(cast(Client, daemon), lambda: interrupted(1))
    assert daemon.cancelled == [RUNNING.id]
    assert "cancelling" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGINT) is before


def test_two_end_the_command_at_once() -> None:
    before, daemon = signal.getsignal(signal.SIGINT), Pretended()
    with pytest.raises(KeyboardInterrupt):
        follow(cast(Client, daemon), lambda: interrupted(2))
    assert daemon.cancelled == []
    assert signal.getsignal(signal.SIGINT) is before
