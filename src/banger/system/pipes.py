"""What a thread writes, as a stream: nothing lies on disk in between, and the writer waits for the reader."""

import asyncio
import os
from collections.abc import AsyncGenerator, Callable
from typing import BinaryIO, TypeVar

from banger.system.files import in_thread

T = TypeVar("T")
_PIECE = 256 * 1024


async def produced(
    write: Callable[[BinaryIO], T], done: Callable[[T], None] = lambda _: None
) -> AsyncGenerator[bytes, None]:
    """The bytes that `write` writes; `done` is given what it returns. Raises what either of them raises.

    Close the iterator (`contextlib.aclosing`) when it is left early: the writer's next write fails then.
    """
    read_end, write_end = os.pipe()
    reader = asyncio.StreamReader(limit=_PIECE)
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(read_end, "rb", 0)
    )

    def work() -> T:
        with os.fdopen(write_end, "wb") as out:
            return write(out)

    writing = asyncio.ensure_future(in_thread(work))
    try:
        while piece := await reader.read(_PIECE):
            yield piece
        done(await writing)
    finally:
        transport.close()
        await asyncio.gather(writing, return_exceptions=True)
