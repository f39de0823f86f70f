"""Health: what is checked of a VM, and the one watcher that each running VM has."""

import asyncio
import logging
import time
from collections.abc import Callable

from banger.engine.api import EngineApi
from banger.engine.launch import alive
from banger.guest.channel import Guest
from banger.model.errors import BangerError
from banger.model.vm import LIVE, Check, Vm, VmHealth, VmState
from banger.paths import Paths
from banger.system.watch import process_end

CHECK_TIMEOUT_S = 5.0
# the agent answers before the other services are up; an emulated guest needs some seconds more for them
STARTING_S = 60.0
log = logging.getLogger(__name__)

Ended = Callable[[str, int | None], None]


async def check_vm(vm: Vm, paths: Paths) -> VmHealth:
    """Every check of one VM, each with its next step when it fails."""
    if vm.state not in LIVE or vm.process is None:
        detail = vm.problem or f"the VM is {vm.state}"
        check = Check(name="engine", ok=False, detail=detail, hint=f"banger vm start {vm.name}")
        return _result(vm, "stopped", [check])
    checks = [_engine_process(vm)]
    if checks[0].ok:
        checks.append(await _engine_api(vm, paths))
        checks += await _agent(vm, paths)
    return _result(vm, "healthy" if all(check.ok for check in checks) else "unhealthy", checks)


def _result(vm: Vm, status: str, checks: list[Check]) -> VmHealth:
    return VmHealth(name=vm.name, status=status, checked_at=time.time(), checks=tuple(checks))


def _engine_process(vm: Vm) -> Check:
    ok = vm.process is not None and alive(vm.process)
    pid = vm.process.pid if vm.process else 0
    return Check(
        name="engine",
        ok=ok,
        detail=f"{vm.engine} on {vm.accelerator}, pid {pid}" if ok else "the engine process has ended",
        hint="" if ok else f"banger vm start {vm.name}",
    )


async def _engine_api(vm: Vm, paths: Paths) -> Check:
    try:
        info = await EngineApi(paths.vm(vm.id).api_socket).info()
    except BangerError as error:
        return Check(name="engine-api", ok=False, detail=error.message, hint=f"banger vm restart {vm.name}")
    ok = info.state == "Running" or vm.state is VmState.PAUSED
    hint = "" if ok else f"`banger vm logs --source engine {vm.name}` may say why; `banger vm resume {vm.name}`"
    return Check(name="engine-api", ok=ok, detail=f"{info.app_name} says {info.state}", hint=hint)


async def _agent(vm: Vm, paths: Paths) -> list[Check]:
    if vm.state is VmState.PAUSED:
        return [Check(name="agent", ok=True, detail="the VM is paused; the agent was not asked")]
    try:
        health = await Guest(paths.vm(vm.id).vsock_socket).health(timeout=CHECK_TIMEOUT_S)
    except BangerError as error:
        return [Check(name="agent", ok=False, detail=error.message, hint=f"banger vm logs {vm.name}")]
    checks = [
        Check(
            name="agent",
            ok=health.status == "ok",
            detail=f"answers over vsock, version {health.agent_version}, guest up {health.uptime_s:.0f} s",
        )
    ]
    services = sorted((name, state) for name, state in health.services.items() if state != "absent")
    return checks + [_service(vm, name, state, health.uptime_s) for name, state in services]


def _service(vm: Vm, name: str, state: str, uptime_s: float) -> Check:
    if state != "running" and uptime_s < STARTING_S:
        return Check(name=f"service {name}", ok=True, detail=f"starting; the guest is up for {uptime_s:.0f} s")
    hint = f"banger vm exec {vm.name} -- systemctl status {name}"
    return Check(name=f"service {name}", ok=state == "running", detail=state, hint="" if state == "running" else hint)


class Monitor:
    """Watches each live VM: wakes at the end of its engine, and asks for its health now and then."""

    def __init__(self, paths: Paths, period_s: float, find: Callable[[str], Vm | None], ended: Ended) -> None:
        self._paths = paths
        self._period_s = period_s
        self._find = find
        self._ended = ended
        self._tasks: dict[str, list[asyncio.Task[None]]] = {}
        self._last: dict[str, VmHealth] = {}

    def watch(self, vm: Vm, health: VmHealth | None = None) -> None:
        """Begin to watch a live VM; `health` is what is known of it already."""
        self.forget(vm.id)
        if health is not None:
            self._last[vm.id] = health
        self._tasks[vm.id] = [
            asyncio.create_task(self._until_end(vm)),
            asyncio.create_task(self._check_often(vm.id, at_once=health is None)),
        ]

    def forget(self, vm_id: str) -> None:
        self._last.pop(vm_id, None)
        for task in self._tasks.pop(vm_id, ()):
            task.cancel()

    def status(self, vm: Vm) -> str:
        """The last known health in one word."""
        if vm.state not in LIVE:
            return "stopped"
        last = self._last.get(vm.id)
        return last.status if last else "unknown"

    async def check(self, vm: Vm) -> VmHealth:
        """Check now."""
        health = await check_vm(vm, self._paths)
        if vm.id in self._tasks:
            self._last[vm.id] = health
        return health

    async def close(self) -> None:
        tasks = [task for pair in self._tasks.values() for task in pair]
        for vm_id in list(self._tasks):
            self.forget(vm_id)
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _until_end(self, vm: Vm) -> None:
        assert vm.process is not None
        status = await process_end(vm.process.pid, vm.process.start_ticks)
        self._ended(vm.id, status)

    async def _check_often(self, vm_id: str, *, at_once: bool) -> None:
        if not at_once:
            await asyncio.sleep(self._period_s)
        while (vm := self._find(vm_id)) is not None and vm.state in LIVE:
            before = self.status(vm)
            health = await self.check(vm)
            if health.status != before:
                log.info("vm %s: health %s -> %s", vm.name, before, health.status)
            await asyncio.sleep(self._period_s)
