"""What long work tells the person who waits for it; operations implement it."""

from contextlib import AbstractAsyncContextManager
from typing import Protocol


class Progress(Protocol):
    """Stages do not nest; `progress` and `note` belong to the stage that is open."""

    def stage(self, name: str, *, deadline_s: float | None = None) -> AbstractAsyncContextManager[None]:
        """A named, timed stage. Raises `banger.model.errors.Timeout` after `deadline_s` seconds."""
        ...

    def progress(self, done: int, total: int | None, unit: str) -> None:
        """How far the stage is; total None when it is not known."""
        ...

    def note(self, text: str) -> None:
        """One line shown to the person."""
        ...
