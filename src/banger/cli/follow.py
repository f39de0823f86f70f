"""Watching an operation from the terminal: live stages, Ctrl-C cancels it, its error becomes ours."""

import queue
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType

from banger.cli.stages import StageView
from banger.client.api import Client
from banger.model.errors import BangerError, from_dict
from banger.model.operation import Event, EventKind, Operation

TICK_S = 0.5


class _Interrupt:
    """Ctrl-C while an operation is being begun waits until there is something to cancel; a second one does not."""

    def __init__(self) -> None:
        self._came = False
        self._before = signal.getsignal(signal.SIGINT)
        if self._before is not signal.SIG_IGN:
            signal.signal(signal.SIGINT, self._keep)

    def _keep(self, number: int, frame: FrameType | None) -> None:
        if self._came:
            self.restore()
            raise KeyboardInterrupt
        self._came = True

    def restore(self) -> None:
        signal.signal(signal.SIGINT, self._before)

    def let_go(self) -> None:
        """From here on it interrupts again; raises `KeyboardInterrupt` when it came meanwhile."""
        self.restore()
        if self._came:
            self._came = False
            raise KeyboardInterrupt


def follow(
    client: Client, begin: Callable[[], Operation], *, quiet: bool = False, cancel_on_interrupt: bool = True
) -> Operation:
    """Begin an operation, show it until it ends and return its record. Raises the error it ended with.

    Ctrl-C cancels it and waits until everything is taken back; a second one leaves it to the daemon.
    """
    view = StageView(quiet)
    after = 0
    interrupt = _Interrupt()
    try:
        operation = begin()
        while True:
            try:
                interrupt.let_go()
                for event in _ticking(client, operation.id, after, view):
                    after = event.seq
                    view.show(event)
                break
            except KeyboardInterrupt:
                if not cancel_on_interrupt:
                    raise
                view.close()
                print("cancelling; press Ctrl-C again to leave it to the daemon", file=sys.stderr)
                client.cancel_operation(operation.id)
                cancel_on_interrupt = False
    finally:
        interrupt.restore()
        view.close()
    ended = client.show_operation(operation.id)
    if ended.error is not None:
        raise from_dict(ended.error)
    return ended


def _ticking(client: Client, operation_id: str, after: int, view: StageView) -> Iterator[Event]:
    """Events, with a tick of the view twice a second while there are none."""
    if not sys.stderr.isatty():
        yield from client.follow(operation_id, after)
        return
    events: queue.SimpleQueue[Event | BangerError] = queue.SimpleQueue()

    def read() -> None:
        try:
            for event in client.follow(operation_id, after):
                events.put(event)
        except BangerError as error:
            events.put(error)

    threading.Thread(target=read, daemon=True).start()
    while True:
        try:
            event = events.get(timeout=TICK_S)
        except queue.Empty:
            view.tick()
            continue
        if isinstance(event, BangerError):
            raise event
        yield event
        if event.kind is EventKind.END:
            return
