"""The host's RESIZE and SIGNAL frames. A malformed one is ignored: it must not end the process."""

import os

from banger.guest.agent.command import size
from banger.guest.agent.http1 import Refused
from banger.guest.agent.jsonlite import decode
from banger.guest.agent.signals import number_of
from banger.guest.agent.spawn import Child, resize


def _document(payload: bytes) -> "dict[str, object]":
    try:
        document = decode(payload)
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}


def apply_resize(child: Child, payload: bytes) -> None:
    """Set the terminal's size; without a terminal nothing happens."""
    document = _document(payload)
    try:
        rows, cols = size(document.get("rows")), size(document.get("cols"))
    except Refused:
        return
    if child.tty:
        resize(child.stdout, rows, cols)


def apply_signal(child: Child, payload: bytes) -> None:
    """Signal the terminal's foreground group, or without a terminal the process's own group."""
    number = number_of(_document(payload).get("signal"))
    if not number:
        return
    try:
        os.killpg(os.tcgetpgrp(child.stdout) if child.tty else child.pid, number)
    except OSError:
        return  # it has ended, or has lost its terminal
