"""Programs that work inside a root of ours, as root, in PID and mount namespaces of their own.

Whatever way such a program ends, and also when we are killed, every process it started ends with it, those
in sessions of their own included, and nothing that it mounted exists outside.
"""

import asyncio
import os
from collections import deque
from collections.abc import Callable, Sequence

import psutil

from banger.model.errors import HostRequirement, Timeout
from banger.system.process import failure, find_program, kill_group, spawn
from banger.system.watch import readable

_KEPT_LINES = 60
_LONGEST_LINE = 2000
_REAP_S = 30.0


def require_root() -> None:
    """Raise `HostRequirement` for anybody but root."""
    if os.geteuid() != 0:
        raise HostRequirement("making an image needs root", hint="run the daemon as root: sudo banger daemon run")


def _prefix(network: bool) -> list[str]:
    return [
        find_program("setpriv", package="util-linux"), "--pdeathsig", "KILL", "--",
        find_program("unshare", package="util-linux"), "--mount", "--pid", "--fork", "--kill-child",
        *([] if network else ["--net"]), "--mount-proc", "--",
    ]  # fmt: skip


async def run_confined(
    argv: Sequence[str], *, timeout: float, on_line: Callable[[str], None], network: bool = True
) -> None:
    """Run to the end, giving each line of output to `on_line`. Raises `CommandFailed` with the last lines, `Timeout`.

    On failure, timeout and cancellation this returns only when every process is gone. Without `network` there is
    none, not even a loopback.
    """
    words = [*_prefix(network), *argv]
    child = await spawn(words, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, cwd="/")
    kept: deque[str] = deque(maxlen=_KEPT_LINES)
    try:
        async with asyncio.timeout(timeout):
            assert child.stdout is not None
            await _lines(child.stdout, kept, on_line)
            status = await child.wait()
    except TimeoutError as error:
        name = argv[0].rsplit("/", 1)[-1]
        raise Timeout(f"{name} did not finish within {timeout:g} s", details={"stderr": "\n".join(kept)}) from error
    finally:
        await _end(child)
    if status != 0:
        raise failure(argv, status, "\n".join(kept).encode())


async def _lines(stream: asyncio.StreamReader, kept: deque[str], on_line: Callable[[str], None]) -> None:
    """Split the stream at newlines and carriage returns; what is longer than 2000 bytes is cut into pieces."""
    rest = b""
    while piece := await stream.read(65536):
        *whole, rest = (rest + piece).replace(b"\r", b"\n").split(b"\n")
        if len(rest) > _LONGEST_LINE:
            whole, rest = [*whole, rest], b""
        for raw in whole:
            line = raw[:_LONGEST_LINE].decode(errors="replace").rstrip()
            if line:
                kept.append(line)
                on_line(line)


async def _end(child: asyncio.subprocess.Process) -> None:
    """Kill the namespace's first process and wait until the kernel has ended all others in it.

    Its pidfd becomes readable only then (pid_namespaces(7)), so the tree it worked in is quiet afterwards.
    """
    if child.returncode is not None:
        return
    descriptors = _open_children(child.pid)
    try:
        await kill_group(child)
        async with asyncio.timeout(_REAP_S):
            for descriptor in descriptors:
                await readable(descriptor)
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def _open_children(pid: int) -> list[int]:
    descriptors = []
    try:
        for process in psutil.Process(pid).children():
            descriptors.append(os.pidfd_open(process.pid))
    except (psutil.NoSuchProcess, ProcessLookupError):
        pass  # it ended by itself meanwhile
    return descriptors
