"""What a person sees: tables, documents, and the live stages of an operation (on stderr)."""

import json
import sys
import time
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from banger.model.operation import Event, EventKind


def print_json(value: Any) -> None:
    """One JSON document on stdout."""
    print(json.dumps(msgspec.to_builtins(value), indent=2))


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Aligned columns on stdout."""
    lines = [tuple(headings), *(tuple(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(headings))]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def facts(pairs: Iterable[tuple[str, str]]) -> None:
    """A `name  value` list on stdout; empty values are left out."""
    shown = [(name, value) for name, value in pairs if value]
    width = max(len(name) for name, _ in shown)
    for name, value in shown:
        print(f"{name.ljust(width)}  {value}")


def duration(seconds: float) -> str:
    """`0.24 s`, `9.5 s`, `3 min 20 s`, `5 h 12 min`, `3 d 4 h`."""
    if seconds < 60:
        return f"{seconds:.2f} s" if seconds < 1 else f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 24 else f"{hours // 24} d {hours % 24} h"


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
        elif event.kind is EventKind.UNDO:
            self._line(f"taking back: {data['text']}")
        elif event.kind is EventKind.PROGRESS:
            self._extra = _amount(data)
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
        from banger.model.sizes import show_size

        return f"{show_size(done)} of {show_size(total)}" if total else show_size(done)
    return f"{done} of {total} {unit}" if total else f"{done} {unit}"
