"""Programs that read what a guest, or anybody, may have written: without privileges, in bounded time and space."""

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path

from banger.model.errors import Invalid, Timeout
from banger.system.confine import confinement, unprivileged_user
from banger.system.process import Completed, find_program, kill_group, spawn

# beside the ids of QEMU, Firecracker and e2fsprogs, above every range that others use
_FIRST_UID = 1_910_000_000


def give_away(directory: Path) -> None:
    """Let such programs of ours write a directory."""
    if (uid := _user()) is not None:
        os.chown(directory, uid, uid)


def _user() -> int | None:
    return unprivileged_user(_FIRST_UID + os.getpid())


async def run_unprivileged(
    argv: Sequence[str], *, cwd: Path, timeout: float, limit: int, input: bytes = b"", pass_fds: Sequence[int] = ()
) -> Completed:
    """Run a program as a user who owns nothing, without capabilities; it need not be able to reach `cwd`.

    It is killed when we end, after `timeout` seconds, on cancellation, and once it has printed `limit` bytes. Raises
    `Timeout`, `Invalid` (too much output), `HostRequirement`.
    """
    find_program("setpriv", package="util-linux")
    pipe, name = asyncio.subprocess.PIPE, argv[0].rsplit("/", 1)[-1]
    whole = [*confinement(_user()), *argv]
    child = await spawn(whole, stdin=pipe, stdout=pipe, stderr=pipe, pass_fds=pass_fds, cwd=cwd)
    assert child.stdin is not None
    try:
        async with asyncio.timeout(timeout):
            child.stdin.write(input)
            child.stdin.close()
            out, err = await asyncio.gather(_read(child.stdout, limit, name), _read(child.stderr, limit, name))
            status = await child.wait()
    except TimeoutError as error:
        raise Timeout(f"{name} did not finish within {timeout:g} s") from error
    finally:
        await kill_group(child)
    return Completed(tuple(argv), status, out, err)


async def _read(stream: asyncio.StreamReader | None, limit: int, name: str) -> bytes:
    assert stream is not None
    found = bytearray()
    while piece := await stream.read(65536):
        found += piece
        if len(found) > limit:
            raise Invalid(f"{name} printed more than {limit} bytes about what it was given to read")
    return bytes(found)
