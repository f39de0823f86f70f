"""Programs that may print without an end, as what they read may be anybody's: what is kept of it has a bound."""

import asyncio
import os
import shlex
from collections.abc import Callable, Sequence

from banger.model.errors import Invalid, Timeout
from banger.system.process import Completed, kill_group, spawn

KEPT_BYTES = 64 * 1024

Heard = Callable[[bytes], None]


async def run_bounded(
    argv: Sequence[str],
    *,
    timeout: float,
    named: Sequence[str] = (),
    kept: int = KEPT_BYTES,
    whole: bool = False,
    input: bytes = b"",
    heard: Heard = lambda _: None,
    pass_fds: Sequence[int] = (),
    cwd: str | os.PathLike[str] = "/",
) -> Completed:
    """Run a command to its end, whatever its status; the last `kept` bytes of each stream are kept.

    `whole`: more than that is an error, and ends it. `heard` is given standard output as it comes; `named` is what a
    person is told was run. On cancellation or timeout, in seconds, the whole group is killed. Raises `Timeout`,
    `Invalid` (more than `kept`, if `whole`), `HostRequirement`.
    """
    named = tuple(named or argv)
    name = named[0].rsplit("/", 1)[-1]
    pipe = asyncio.subprocess.PIPE
    child = await spawn(argv, stdin=pipe, stdout=pipe, stderr=pipe, pass_fds=pass_fds, cwd=cwd)
    assert child.stdin is not None
    too_much = Invalid(f"{name} printed more than {kept} bytes about what it was given to read") if whole else None
    try:
        async with asyncio.timeout(timeout):
            child.stdin.write(input)
            child.stdin.close()
            out, err = await asyncio.gather(
                _read(child.stdout, kept, too_much, heard), _read(child.stderr, kept, too_much, lambda _: None)
            )
            status = await child.wait()
    except TimeoutError as error:
        raise Timeout(
            f"{name} did not finish within {timeout:g} s", hint=f"to try it by hand: {shlex.join(named)}"
        ) from error
    finally:
        await kill_group(child)
    return Completed(named, status, out, err)


async def _read(stream: asyncio.StreamReader | None, kept: int, too_much: Invalid | None, heard: Heard) -> bytes:
    assert stream is not None
    found = b""
    while piece := await stream.read(65536):
        heard(piece)
        found += piece
        if len(found) > kept:
            if too_much is not None:
                raise too_much
            found = found[-kept:]
    return found
