"""A root disk with all that lies under it, as one raw file."""

import asyncio
import re
from pathlib import Path
from typing import Literal

from banger.model.errors import Invalid
from banger.model.progress import Progress
from banger.system.bounded import run_bounded
from banger.system.process import failure, find_program
from banger.system.qcow2 import read_qcow2

FLATTEN_S = 3600.0
_PERCENT = re.compile(rb"\((\d+\.\d+)/100%\)")


async def flatten(disk: Path, kind: Literal["qcow2", "raw"], base: Path, target: Path, progress: Progress) -> None:
    """Make `target` a sparse raw file with what a machine sees on `disk`, which no machine has open.

    A qcow2 must lie over the raw file `base`: its header is compared before anything opens it. Cancelling ends it;
    `target` is the caller's to remove. Raises `Invalid`, `CommandFailed`, `Timeout`.
    """
    if kind == "qcow2":
        header = read_qcow2(disk)
        if (header.backing, header.backing_format) != (str(base.absolute()), "raw") or header.foreign or header.corrupt:
            raise Invalid(
                f"the root disk {disk.name} does not lie over {base}, or is damaged",
                hint="build the image again with --no-cache",
            )
    loop = asyncio.get_running_loop()

    def heard(piece: bytes) -> None:
        if found := _PERCENT.findall(piece):
            loop.call_soon(progress.progress, int(float(found[-1])), 100, "%")

    argv = [find_program("qemu-img", package="qemu-utils"), "convert", "-p", "-f", kind, "-O", "raw", "-S", "4k"]
    done = await run_bounded([*argv, str(disk.absolute()), str(target.absolute())], timeout=FLATTEN_S, heard=heard)
    if done.status != 0:
        raise failure(done.argv, done.status, done.stderr)
