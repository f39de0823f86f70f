"""The terminal that is our standard input."""

import contextlib
import termios
import tty
from collections.abc import Iterator


@contextlib.contextmanager
def raw(wanted: bool) -> Iterator[None]:
    """The terminal in raw mode, and always back as it was."""
    if not wanted:
        yield
        return
    before = termios.tcgetattr(0)
    try:
        tty.setraw(0)
        yield
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)
