"""Mounts of single files."""

from pathlib import Path

from banger.system.process import find_program, run

TIMEOUT_S = 30.0


async def bind_file(source: Path, target: Path, *, read_only: bool) -> None:
    """Make `source` appear as `target` too, which is made (mount(8), --bind). Needs root; raises `CommandFailed`."""
    mount = find_program("mount", package="mount")
    target.touch(mode=0o600, exist_ok=False)
    await run([mount, "--bind", "--", str(source), str(target)], timeout=TIMEOUT_S)
    if read_only:
        await run([mount, "-o", "remount,bind,ro", "--", str(target)], timeout=TIMEOUT_S)
