"""The terminal's side of vm exec."""

import os

import pytest

from banger.cli import exec


@pytest.mark.parametrize(("columns", "lines"), [(0, 0), (80, 0), (0, 24)])
def test_a_terminal_that_does_not_know_its_size_gets_the_usual_one(
    monkeypatch: pytest.MonkeyPatch, columns: int, lines: int
) -> None:
    monkeypatch.setattr(os, "get_terminal_size", lambda: os.terminal_size((columns, lines)))
    assert exec._size() == (80, 24)


def test_the_size_of_a_terminal_that_knows_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "get_terminal_size", lambda: os.terminal_size((200, 50)))
    assert exec._size() == (200, 50)
