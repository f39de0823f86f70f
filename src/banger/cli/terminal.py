"""The terminal that is our standard input, and signals as something to read."""

import contextlib
import os
import signal
import termios
import tty
from collections.abc import Iterator, Sequence


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


@contextlib.contextmanager
def signals(numbers: Sequence[int]) -> Iterator[int]:
    """A descriptor on which the numbers of these signals arrive, a byte each, instead of what they did before."""
    read_end, write_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    before = {number: signal.signal(number, lambda *_: None) for number in numbers}
    old = signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
    try:
        yield read_end
    finally:
        signal.set_wakeup_fd(old)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(read_end)
        os.close(write_end)
