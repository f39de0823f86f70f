"""Signals from the C module below the standard library's `signal`, which would load `enum`.

The names are typed here once, for the type checker has no stub of `_signal`.
"""

import _signal  # type: ignore[import-not-found]

SIGHUP: int = _signal.SIGHUP
SIGTERM: int = _signal.SIGTERM
SIGPIPE: int = _signal.SIGPIPE
SIGKILL: int = _signal.SIGKILL
SIGRTMIN: int = _signal.SIGRTMIN
NSIG: int = _signal.NSIG


def reset_all() -> None:
    """In a forked child: default disposition for every signal, and none blocked."""
    for number in range(1, NSIG):
        try:
            _signal.signal(number, _signal.SIG_DFL)
        except OSError:
            continue  # KILL and STOP, and those that the C library keeps to itself
    _signal.pthread_sigmask(_signal.SIG_SETMASK, ())


def number_of(value: object) -> int:
    """The number of a signal given as "INT", "SIGINT" or 2; 0 when there is none."""
    if isinstance(value, str):
        name = value if value.startswith("SIG") else "SIG" + value
        value = getattr(_signal, name, 0) if name.isalnum() else 0
    return int(value) if isinstance(value, int) and 0 < value < NSIG else 0
