"""Starting an engine process that outlives the daemon, finding it again, and ending it."""

import asyncio
import os
import signal
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any

from banger.engine.api import EngineApi
from banger.model.errors import CommandFailed, GuestUnreachable, Timeout
from banger.model.vm import EngineProcess
from banger.paths import VmPaths
from banger.system.host import boot_id, start_ticks
from banger.system.process import Session, spawn_session
from banger.system.watch import file_appears, process_end

API_DEADLINE_S = 15.0
END_DEADLINE_S = 5.0
LOG_TAIL = 4000


def tail(path: Path, limit: int = LOG_TAIL) -> str:
    """The last bytes of a log as text; empty when there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - limit))
            return file.read(limit).decode(errors="replace")
    except FileNotFoundError:
        return ""


async def launch(program: Sequence[str], vm_id: str, paths: VmPaths, *more: str) -> EngineProcess:
    """Start the engine and return once its API socket is there. Raises `CommandFailed` with its last words."""
    with paths.console_log.open("ab") as console, paths.engine_log.open("ab") as log:
        child = spawn_session(
            [*program, "--api-sock", str(paths.api_socket), "--id", vm_id, *more], stdout=console, stderr=log
        )
    ticks = start_ticks(child.pid)
    if ticks is None:
        child.wait()
        raise _died(child, paths)
    process = EngineProcess(pid=child.pid, start_ticks=ticks, boot_id=boot_id())
    # from here on the process is known by pid and start time, and reaped by `process_end`
    child.returncode = 0
    try:
        appeared = await _first(file_appears(paths.api_socket), process_end(process.pid, process.start_ticks))
        if not appeared:
            raise _died(child, paths)
    finally:
        if not paths.api_socket.exists():
            await end(process)
    return process


async def _first(wanted: Coroutine[Any, Any, object], other: Coroutine[Any, Any, object]) -> bool:
    """Whether `wanted` came first within the deadline."""
    tasks = [asyncio.ensure_future(wanted), asyncio.ensure_future(other)]
    try:
        await asyncio.wait(tasks, timeout=API_DEADLINE_S, return_when=asyncio.FIRST_COMPLETED)
        return tasks[0].done()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _died(child: Session, paths: VmPaths) -> CommandFailed:
    words = tail(paths.engine_log).strip().splitlines()
    return CommandFailed(
        f"the engine did not start: {words[-1] if words else 'it said nothing'}",
        hint=f"its log is {paths.engine_log}",
        details={"pid": child.pid},
    )


def alive(process: EngineProcess) -> bool:
    """Whether exactly this process runs: same boot, same pid, same start time."""
    return process.boot_id == boot_id() and start_ticks(process.pid) == process.start_ticks


async def adopt(process: EngineProcess, vm_id: str, paths: VmPaths) -> bool:
    """Whether this engine still runs and is the one that serves this VM's socket."""
    if not alive(process):
        return False
    try:
        return (await EngineApi(paths.api_socket).info()).id == vm_id
    except (GuestUnreachable, Timeout, CommandFailed):
        return False


async def end(process: EngineProcess) -> None:
    """End the engine: first politely, after a few seconds for certain. Nothing is sent to a recycled pid."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if not alive(process):
            break
        try:
            os.kill(process.pid, number)
        except ProcessLookupError:
            break
        try:
            async with asyncio.timeout(END_DEADLINE_S):
                await process_end(process.pid, process.start_ticks)
        except TimeoutError:
            continue
    await process_end(process.pid, process.start_ticks)
