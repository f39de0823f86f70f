"""Programs that read what a guest, or anybody, may have written: without privileges, in bounded time and space."""

import os
from collections.abc import Sequence
from pathlib import Path

from banger.system.bounded import run_bounded
from banger.system.confine import confinement, unprivileged_user
from banger.system.process import Completed, find_program

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
    return await run_bounded(
        [*confinement(_user()), *argv],
        timeout=timeout,
        named=argv,
        kept=limit,
        whole=True,
        input=input,
        pass_fds=pass_fds,
        cwd=cwd,
    )
