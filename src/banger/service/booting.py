"""Starting machines and waiting for them: what VMs and banger's own short-lived machines share."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, TypeVar

from banger.engine import payload
from banger.engine.api import EngineApi
from banger.engine.launch import can_jail, launch, launch_jailed, tail
from banger.engine.select import Engine, Needs
from banger.guest.channel import Guest
from banger.guest.ready import ReadyListener
from banger.model.errors import BangerError, GuestUnreachable
from banger.model.machine import Machine
from banger.model.vm import EngineProcess, WantedEngine
from banger.paths import JailPaths, VmPaths
from banger.system.watch import process_end

ASK_AGAIN_S = 2.0
CALL_S = 10.0
START_S = 30.0
BOOTS_MAX = 3
PANIC = "Kernel panic - not syncing"

ChooseEngine = Callable[[WantedEngine, Needs], Awaitable[Engine]]
T = TypeVar("T")


class GuestPanicked(GuestUnreachable):
    """The guest's kernel gave up while it booted.

    QEMU's multi-threaded emulation now and then loses a race when a booting kernel patches its own code: the machine is
    booted again then, up to BOOTS_MAX times in all.
    """


async def start_engine(
    engine: Engine, machine: Machine, paths: VmPaths, jail: JailPaths, inherit: Sequence[int] = ()
) -> tuple[EngineProcess, Machine]:
    """Start the engine, in its jail where it has one; also the machine as it must be told it. Raises as `launch`."""
    if can_jail(engine):
        return await launch_jailed(engine, machine, paths, jail)
    return await launch(engine, machine, paths, inherit=inherit), machine


async def configure(api: EngineApi, machine: Machine) -> None:
    """Tell an engine its machine."""
    for method, path, body in payload.configuration(machine):
        await api.call(method, path, body)


async def start_machine(api: EngineApi) -> None:
    """Let the machine run that the engine was told."""
    method, path, body = payload.START
    await api.call(method, path, body, timeout=START_S)


async def or_end(process: EngineProcess, console_log: Path, work: Coroutine[Any, Any, T]) -> T:
    """Do the work; raise `GuestPanicked` or `GuestUnreachable` when the engine ends first."""
    working = asyncio.ensure_future(work)
    ended = asyncio.ensure_future(process_end(process.pid, process.start_ticks))
    try:
        await asyncio.wait({working, ended}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            if PANIC in tail(console_log):
                raise GuestPanicked("the guest's kernel panicked while it booted")
            raise GuestUnreachable("the machine powered off or its engine ended before the guest was ready")
        return working.result()
    finally:
        for task in (working, ended):
            task.cancel()
        await asyncio.gather(working, ended, return_exceptions=True)


async def until_ok(vsock_socket: Path, ready: ReadyListener) -> None:
    """Return once the guest's agent says that it is well; the caller sets the deadline."""
    guest = Guest(vsock_socket)
    while True:
        # the agent dials in when it listens; asking now and then covers an agent that cannot
        with contextlib.suppress(GuestUnreachable):
            await ready.wait(timeout=ASK_AGAIN_S)
        try:
            if (await guest.health(timeout=CALL_S)).status == "ok":
                return
        except BangerError:
            await asyncio.sleep(0.05)
