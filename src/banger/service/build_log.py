"""What the steps of one build print: kept in a file, and the last lines at hand for an error."""

import contextlib
from collections import deque
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from banger.model.text import harmless

BYTES_MAX = 64 * 1024 * 1024
LAST_LINES = 15


class BuildLog:
    """Use as a context manager. Lines behind `BYTES_MAX` are not kept, and that is said in the file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._left = BYTES_MAX
        self._last: deque[str] = deque(maxlen=LAST_LINES)
        self._file: BinaryIO | None = None

    def __enter__(self) -> Self:
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._file = self.path.open("xb", buffering=0)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()

    def begin(self, title: str) -> None:
        """A step begins: the lines of the one before are of no interest any more."""
        self._last.clear()
        self._write(f"== {title}\n")

    def line(self, text: str) -> None:
        self._last.append(harmless(text))
        self._write(f"{text}\n")

    def last(self) -> list[str]:
        """The last lines of the present step that are not empty, harmless to show."""
        return [line for line in self._last if line.strip()]

    def _write(self, text: str) -> None:
        if self._file is None or self._left <= 0:
            return
        data = text.encode(errors="replace")
        self._left -= len(data)
        with contextlib.suppress(OSError):  # a full disk ends the build where it matters
            self._file.write(data if self._left > 0 else b"== there is more than is kept\n")
