"""What a machine sees of its root disk, written out as one raw disk."""

import re
from pathlib import Path

import msgspec

from banger.model.progress import Progress
from banger.system.bounded import run_bounded
from banger.system.process import failure, find_program

_CONVERT_S = 3600.0
_PERCENT = re.compile(rb"\((\d+)(?:\.\d+)?/100%\)")


async def flatten(disk: Path, base: Path | None, target: Path, size: int, progress: Progress) -> None:
    """Make `target` with what a guest sees of its disk: a qcow2 over the raw file `base`, or without one a raw device.

    Holes stay holes. Nothing is probed, and nothing opened but what is named here, whatever an overlay's header says.
    `size` in bytes is what progress is told of. Cancelling ends it, and `target` is there then. Raises `CommandFailed`,
    `Timeout`.
    """

    def heard(piece: bytes) -> None:
        if percents := _PERCENT.findall(piece):
            progress.progress(size * int(percents[-1]) // 100, size, "bytes")

    if base is None:
        source: dict[str, object] = {"driver": "raw", "file": {"driver": "host_device", "filename": str(disk)}}
    else:
        source = {
            "driver": "qcow2",
            "file": {"driver": "file", "filename": str(disk)},
            "backing": {"driver": "raw", "file": {"driver": "file", "filename": str(base)}},
        }
    target.touch(0o600, exist_ok=False)
    argv = [find_program("qemu-img", package="qemu-utils"), "convert", "-p", "-O", "raw"]
    words = [*argv, f"json:{msgspec.json.encode(source).decode()}", str(target)]
    done = await run_bounded(words, timeout=_CONVERT_S, heard=heard)
    if done.status:
        raise failure(words, done.status, done.stderr)
