"""Programs that may print without an end: what is kept of it has a bound, and the rest is read and dropped."""

import asyncio
import shlex
from collections.abc import Callable, Sequence

from banger.model.errors import Timeout
from banger.system.process import Completed, kill_group, spawn

KEPT_BYTES = 64 * 1024


async def run_bounded(
    argv: Sequence[str], *, timeout: float, heard: Callable[[bytes], None] = lambda _: None
) -> Completed:
    """Run a command to its end, whatever its status; the first 64 KiB of each stream are kept.

    `heard` is given standard output as it comes. On cancellation or timeout, in seconds, the whole group is killed.
    Raises `Timeout`, `HostRequirement`.
    """
    child = await spawn(argv, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE)
    assert child.stdout is not None
    assert child.stderr is not None
    try:
        async with asyncio.timeout(timeout), asyncio.TaskGroup() as group:
            out = group.create_task(_drain(child.stdout, heard))
            err = group.create_task(_drain(child.stderr, lambda _: None))
            group.create_task(child.wait())
    except TimeoutError as error:
        raise Timeout(
            f"{argv[0].rsplit('/', 1)[-1]} did not finish within {timeout:g} s",
            hint=f"to try it by hand: {shlex.join(argv)}",
        ) from error
    finally:
        await kill_group(child)
    assert child.returncode is not None
    return Completed(tuple(argv), child.returncode, out.result(), err.result())


async def _drain(stream: asyncio.StreamReader, heard: Callable[[bytes], None]) -> bytes:
    kept = b""
    while piece := await stream.read(65536):
        heard(piece)
        kept += piece[: KEPT_BYTES - len(kept)]
    return kept
