"""Starting an engine process that outlives the daemon, finding it again, and ending it."""

import asyncio
import os
import shutil
import signal
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any

from banger.engine.api import EngineApi, EngineUnreachable
from banger.engine.jail import controllers, dismantle, furnish, inside, jail_argv, jail_uid
from banger.engine.select import Engine
from banger.model.errors import CommandFailed, GuestUnreachable, Timeout
from banger.model.machine import Machine
from banger.model.vm import EngineProcess
from banger.paths import JAILED, JailPaths, VmPaths
from banger.system.host import boot_id, command_lines, has_root, start_ticks
from banger.system.process import Session, spawn_session
from banger.system.watch import file_appears, process_end

API_DEADLINE_S = 15.0
END_DEADLINE_S = 5.0
LOG_TAIL = 4000
LEVEL = "Info"


def tail_bytes(path: Path, limit: int) -> bytes:
    """The last bytes of a log; none when there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - limit))
            return file.read(limit)
    except FileNotFoundError:
        return b""


def tail(path: Path, limit: int = LOG_TAIL) -> str:
    """The last bytes of a log as text; empty when there is none."""
    return tail_bytes(path, limit).decode(errors="replace")


def can_jail(engine: Engine) -> bool:
    """Whether this engine is started through its jailer: as root, by the name that makes the jail's."""
    return engine.jailer is not None and os.geteuid() == 0 and Path(engine.program[0]).resolve().name == JAILED


async def launch(engine: Engine, machine: Machine, paths: VmPaths, inherit: Sequence[int] = ()) -> EngineProcess:
    """Start the engine and return once its API socket is there. Raises `CommandFailed` with its last words.

    Descriptors in `inherit` are open in the engine until it ends, whoever closes them here.
    """
    _fresh_runtime(paths)
    paths.runtime.mkdir(parents=True, mode=0o700)
    words = ["--api-sock", str(paths.api_socket), "--id", machine.id, *_log_words(str(paths.engine_log))]
    if engine.capabilities.qcow2:
        words += [word for file in machine.backing_files for word in ("--backing-file", file)]
    _rotate_logs(paths)
    keyboard = _open_keyboard(paths.console_input)
    try:
        child = _spawn([*engine.program, *words], paths, keyboard, inherit)
    finally:
        os.close(keyboard)
    return await _until_api(_identify(child, paths), paths)


def _open_keyboard(path: Path) -> int:
    """A named pipe that whoever types on the console opens. A fresh one: nobody types into a later boot by mistake.

    The engine gets it open for writing too, and so never reads an end of file, whoever comes and goes.
    """
    path.unlink(missing_ok=True)
    os.mkfifo(path, 0o600)
    return os.open(path, os.O_RDWR | os.O_CLOEXEC)


def _log_words(path: str) -> list[str]:
    """Firecracker logs to its console's output unless told otherwise."""
    return ["--log-path", path, "--level", LEVEL]


def _fresh_runtime(paths: VmPaths) -> None:
    if paths.runtime.is_symlink():
        paths.runtime.unlink()
    elif paths.runtime.exists():
        shutil.rmtree(paths.runtime)


def previous_log(log: Path) -> Path:
    """Where a log of the start before is kept."""
    return log.with_suffix(".previous.log")


def _rotate_logs(paths: VmPaths) -> None:
    """Fresh logs for each start; those before are kept."""
    for log in (paths.console_log, paths.engine_log):
        if log.exists():
            log.replace(previous_log(log))


def _spawn(argv: list[str], paths: VmPaths, keyboard: int | None = None, inherit: Sequence[int] = ()) -> Session:
    with paths.console_log.open("ab") as console, paths.engine_log.open("ab") as log_file:
        return spawn_session(argv, stdin=keyboard, stdout=console, stderr=log_file, pass_fds=inherit)


def _identify(child: Session, paths: VmPaths) -> EngineProcess:
    ticks = start_ticks(child.pid)
    if ticks is None:
        child.wait()
        raise _died(child.pid, paths)
    # from here on the process is known by pid and start time, and reaped by `process_end`
    child.returncode = 0
    return EngineProcess(pid=child.pid, start_ticks=ticks, boot_id=boot_id())


async def launch_jailed(
    engine: Engine, machine: Machine, paths: VmPaths, jail: JailPaths
) -> tuple[EngineProcess, Machine]:
    """Start the engine through its jailer; also the machine as the jailed engine must be told it. Raises as `launch`.

    The jailer closes all descriptors but the first three, so that the engine inherits none.
    The VM's runtime directory is then a symbolic link into the jail.
    """
    view, uid = inside(machine), jail_uid(machine.id)
    words = ["--api-sock", "/run/api.sock", *_log_words("/run/engine.log")]
    argv = [*jail_argv(engine, machine, jail, uid, controllers()), *words]
    _fresh_runtime(paths)
    paths.runtime.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    _rotate_logs(paths)
    paths.console_input.unlink(missing_ok=True)
    paths.engine_log.touch(mode=0o600)
    try:
        await furnish(jail, view, uid, paths.engine_log)
        paths.runtime.symlink_to(jail.run)
        process = await _jailed(argv, paths, jail)
        return await _until_api(process, paths), view.machine
    except BaseException:
        # cancelled between the jailer's two steps, the engine may be there and not known yet
        if (unknown := find_engine(machine.id, paths, jail)) is not None:
            await end(unknown, polite=False)
        await clean_up(paths, jail)
        raise


async def _jailed(argv: list[str], paths: VmPaths, jail: JailPaths) -> EngineProcess:
    """The jailer ends when it has cloned the engine into its pid namespace and written the engine's pid."""
    jailer = _identify(_spawn(argv, paths), paths)
    try:
        async with asyncio.timeout(API_DEADLINE_S):
            await process_end(jailer.pid, jailer.start_ticks)
        pid = int(jail.pid_file.read_text())
    except (TimeoutError, FileNotFoundError, ValueError) as error:
        raise _died(jailer.pid, paths) from error
    finally:
        await end(jailer)
    ticks = start_ticks(pid)
    if ticks is None:
        raise _died(pid, paths)
    return EngineProcess(pid=pid, start_ticks=ticks, boot_id=boot_id())


async def _until_api(process: EngineProcess, paths: VmPaths) -> EngineProcess:
    done = False
    try:
        if not await _first(_listens(paths.api_socket), process_end(process.pid, process.start_ticks)):
            raise _died(process.pid, paths)
        done = True
    finally:
        if not done:
            await end(process, polite=False)
    return process


async def _listens(path: Path) -> None:
    """Return once somebody listens: the file is there a moment earlier."""
    await file_appears(path)
    while True:
        try:
            await EngineApi(path).served_by()
            return
        except EngineUnreachable:
            await asyncio.sleep(0.002)


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


def _died(pid: int, paths: VmPaths) -> CommandFailed:
    words = tail(paths.engine_log).strip().splitlines()
    return CommandFailed(
        f"the engine did not start: {words[-1] if words else 'it said nothing'}",
        hint=f"its log is {paths.engine_log}",
        details={"pid": pid},
    )


def alive(process: EngineProcess) -> bool:
    """Whether exactly this process runs: same boot, same pid, same start time."""
    return process.boot_id == boot_id() and start_ticks(process.pid) == process.start_ticks


async def adopt(process: EngineProcess, vm_id: str, paths: VmPaths) -> bool:
    """Whether this engine still runs, and it is this very process that serves this VM on its socket."""
    if not alive(process):
        return False
    try:
        api = EngineApi(paths.api_socket)
        return await api.served_by() == process.pid and (await api.info()).id == vm_id
    except (GuestUnreachable, Timeout, CommandFailed):
        return False


def find_engine(vm_id: str, paths: VmPaths, jail: JailPaths) -> EngineProcess | None:
    """The engine of a VM whose start was never recorded: by its id and its socket, or by its jail; never by a name."""
    for pid, argv in command_lines().items():
        ours = any(vm_id in word for word in argv)
        if ours and (str(paths.api_socket) in argv or has_root(pid, jail.root)):
            ticks = start_ticks(pid)
            if ticks is not None:
                return EngineProcess(pid=pid, start_ticks=ticks, boot_id=boot_id())
    return None


async def end(process: EngineProcess, *, polite: bool = True) -> None:
    """End the engine: first politely, after a few seconds for certain. Nothing is sent to a recycled pid.

    A jailed engine is the first process of its pid namespace, which no polite signal reaches.
    """
    for number in (signal.SIGTERM, signal.SIGKILL) if polite else (signal.SIGKILL,):
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


async def clean_up(paths: VmPaths, jail: JailPaths) -> None:
    """Remove what an ended engine leaves: its sockets, its jail."""
    _fresh_runtime(paths)
    await dismantle(jail)
