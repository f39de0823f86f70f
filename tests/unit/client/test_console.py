"""Typing into a pipe that somebody reads, or nobody."""

import os
from pathlib import Path
from typing import Any

import pytest

from banger.client.console import UNSENT_MAX, Keyboard, open_keyboard
from banger.model.errors import Conflict, Unsupported
from banger.paths import Paths


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    made = Paths(tmp_path / "s", tmp_path / "r", tmp_path / "c")
    made.vm("0123456789ab").state.mkdir(parents=True)
    return made


def vm(**changed: object) -> Any:
    return {"id": "0123456789ab", "name": "a", "state": "running", "engine_pid": 1, "jailed": False, **changed}


def test_a_guest_that_takes_nothing_stops_nobody_and_gets_it_later(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    engine = os.open(tmp_path / "pipe", os.O_RDWR | os.O_NONBLOCK)
    keyboard = Keyboard(tmp_path / "pipe")
    typed = 0
    while keyboard.type(b"x" * 1000):
        typed += 1000
    assert UNSENT_MAX - 1000 < keyboard.unsent <= UNSENT_MAX
    taken = 0
    while taken < typed:
        taken += len(os.read(engine, 65536))
        keyboard.flush()
    assert (taken, keyboard.unsent) == (typed, 0)
    os.close(engine)
    # the engine is gone: not this module's news
    assert keyboard.type(b"x")
    keyboard.close()


def test_why_a_console_takes_no_input(paths: Paths) -> None:
    pipe = paths.vm("0123456789ab").console_input
    with pytest.raises(Conflict, match="not running"):
        open_keyboard(paths, vm(engine_pid=None, state="stopped"))
    with pytest.raises(Unsupported, match="jail"):
        open_keyboard(paths, vm(jailed=True))
    with pytest.raises(Unsupported, match="older banger"):
        open_keyboard(paths, vm())
    pipe.touch()
    with pytest.raises(Unsupported, match="older banger"):
        open_keyboard(paths, vm())
    pipe.unlink()
    os.mkfifo(pipe)  # nobody reads it
    with pytest.raises(Unsupported, match="older banger"):
        open_keyboard(paths, vm())
    engine = os.open(pipe, os.O_RDWR)
    keyboard = open_keyboard(paths, vm())
    assert keyboard.type(b"x")
    keyboard.close()
    os.close(engine)
