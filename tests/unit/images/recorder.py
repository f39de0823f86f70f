"""A Progress that remembers."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Recorder:
    """Stages begun, notes, and the event that is set at the first note holding `wanted`."""

    def __init__(self, wanted: str = "") -> None:
        self.stages: list[str] = []
        self.notes: list[str] = []
        self.seen = asyncio.Event()
        self._wanted = wanted

    @asynccontextmanager
    async def stage(self, name: str, *, deadline_s: float | None = None) -> AsyncIterator[None]:
        self.stages.append(name)
        async with asyncio.timeout(deadline_s):
            yield

    def progress(self, done: int, total: int | None, unit: str) -> None:
        pass

    def note(self, text: str) -> None:
        self.notes.append(text)
        if self._wanted in text:
            self.seen.set()
