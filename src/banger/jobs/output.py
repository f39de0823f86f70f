"""Lines that a step prints, thinned for those who watch: a burst is told whole, an endless flood is not."""

import time
from collections.abc import Callable
from typing import Any

BURST = 200  # lines that are told at once
EACH_S = 10  # lines a second after that

Tell = Callable[[dict[str, Any]], None]


class OutputGate:
    """Lets lines through to `tell` as {"text", "skipped"}: `skipped` lines before this one were not told.

    The last line of a flood is told when it is over: `flush`.
    """

    def __init__(self, tell: Tell, clock: Callable[[], float] = time.monotonic) -> None:
        self._tell = tell
        self._clock = clock
        self._left = float(BURST)
        self._at = clock()
        self._skipped = 0
        self._last = ""

    def line(self, text: str) -> None:
        now = self._clock()
        self._left = min(BURST, self._left + (now - self._at) * EACH_S)
        self._at = now
        if self._left < 1:
            self._skipped, self._last = self._skipped + 1, text
            return
        self._left -= 1
        self._tell({"text": text, "skipped": self._skipped})
        self._skipped = 0

    def flush(self) -> None:
        """A step has ended: tell its last line, whatever is left to tell."""
        if self._skipped:
            self._tell({"text": self._last, "skipped": self._skipped - 1})
            self._skipped = 0
