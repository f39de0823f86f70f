"""The live stages of an operation, on stderr."""

import sys
import time
from typing import Any

from banger.cli.render import duration
from banger.model.operation import Event, EventKind
from banger.model.sizes import show_size


class StageView:
    """Shows events as they come: one line a stage; on a terminal the running one counts its seconds."""

    def __init__(self, quiet: bool = False) -> None:
        self._quiet = quiet
        self._terminal = sys.stderr.isatty()
        self._stage = ""
        self._begun = 0.0
        self._extra = ""

    def show(self, event: Event) -> None:
        if self._quiet:
            return
        data = event.data
        if event.kind is EventKind.STAGE_BEGIN:
            self._stage, self._begun, self._extra = data["stage"], event.at, ""
            self._live()
        elif event.kind is EventKind.STAGE_END:
            mark = "ok" if data["ok"] else "failed"
            self._line(f"{data['stage']:<24} {duration(data['seconds']):>9}  {mark}")
            self._stage = ""
        elif event.kind is EventKind.NOTE:
            self._line(f"  {data['text']}")
            self._live()
        elif event.kind is EventKind.OUTPUT:
            self._output(data)
        elif event.kind is EventKind.UNDO:
            self._line(f"taking back: {data['text']}")
        elif event.kind is EventKind.PROGRESS:
            self._extra = _amount(data)
            self._live()

    def _output(self, data: dict[str, Any]) -> None:
        if data["skipped"]:
            self._line(f"  | ({data['skipped']} lines are left out here)")
        self._line(f"  | {data['text']}")
        self._live()

    def tick(self) -> None:
        """Count on, while nothing happens."""
        self._live()

    def close(self) -> None:
        if self._terminal and not self._quiet:
            print("\r\033[K", end="", file=sys.stderr, flush=True)

    def _live(self) -> None:
        if self._terminal and self._stage and not self._quiet:
            elapsed = duration(max(0.0, time.time() - self._begun))
            text = f"{self._stage:<24} {elapsed:>9}  {self._extra}"
            print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)

    def _line(self, text: str) -> None:
        clear = "\r\033[K" if self._terminal else ""
        print(f"{clear}{text}", file=sys.stderr, flush=True)


def _amount(data: dict[str, Any]) -> str:
    done, total, unit = data["done"], data["total"], data["unit"]
    if unit == "bytes":
        return f"{show_size(done)} of {show_size(total)}" if total else show_size(done)
    return f"{done} of {total} {unit}" if total else f"{done} {unit}"
