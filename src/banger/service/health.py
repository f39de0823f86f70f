"""Health: what is checked of a VM, and the one watcher that each running VM has."""

import asyncio
import logging
import time
from collections.abc import Callable

import msgspec

from banger.engine.api import EngineApi
from banger.engine.launch import alive
from banger.guest.channel import Guest
from banger.model.errors import BangerError
from banger.model.vm import LIVE, OPENCODE_PORT, Check, Vm, VmHealth, VmState
from banger.paths import Paths
from banger.service.opencode import Opencode
from banger.service.pressure import Pressure
from banger.service.truth import Truth
from banger.system.watch import process_end

CHECK_TIMEOUT_S = 5.0
# the agent answers before the other services are up; an emulated guest needs some seconds more for them
STARTING_S = 60.0
SETTLE_S = 0.5
log = logging.getLogger(__name__)

Ended = Callable[[str, int | None], None]


class Checks:
    """What is looked at to say whether a VM is healthy."""

    def __init__(self, paths: Paths, opencode: Opencode) -> None:
        self._paths = paths
        self._opencode = opencode

    async def check(self, vm: Vm) -> VmHealth:
        """Every check of one VM, made now, each with its next step when it fails."""
        if vm.state not in LIVE or vm.process is None:
            detail = vm.problem or f"the VM is {vm.state}"
            stopped = Check(name="engine", ok=False, detail=detail, hint=f"banger vm start {vm.name}")
            return _result(vm, "stopped", [stopped])
        checks = await self.live(vm)
        return _result(vm, "healthy" if all(check.ok for check in checks) else "unhealthy", checks)

    async def live(self, vm: Vm) -> list[Check]:
        """The checks of a VM that should run, in the order of what needs what."""
        checks = [_engine_process(vm)]
        if checks[0].ok:
            checks.append(await self._engine_api(vm))
            checks += await self._agent(vm)
        return checks

    async def _engine_api(self, vm: Vm) -> Check:
        try:
            info = await EngineApi(self._paths.vm(vm.id).api_socket).info()
        except BangerError as error:
            return Check(name="engine-api", ok=False, detail=error.message, hint=f"banger vm restart {vm.name}")
        if vm.state is VmState.PAUSED and vm.problem:
            hint = f"`banger capacity` shows what takes the room; then `banger vm resume {vm.name}`"
            return Check(name="engine-api", ok=False, detail=f"the VM is paused: {vm.problem}", hint=hint)
        ok = info.state == "Running" or vm.state is VmState.PAUSED
        hint = "" if ok else f"`banger vm logs --source engine {vm.name}` may say why; `banger vm resume {vm.name}`"
        return Check(name="engine-api", ok=ok, detail=f"{info.app_name} says {info.state}", hint=hint)

    async def _agent(self, vm: Vm) -> list[Check]:
        if vm.state is VmState.PAUSED:
            return [Check(name="agent", ok=True, detail="the VM is paused; the agent was not asked")]
        try:
            health = await Guest(self._paths.vm(vm.id).vsock_socket).health(timeout=CHECK_TIMEOUT_S)
        except BangerError as error:
            hint = f"it restarts by itself if it was killed: try again; else `banger vm logs {vm.name}`"
            return [Check(name="agent", ok=False, detail=error.message, hint=hint)]
        up = f"guest up {health.uptime_s:.0f} s"
        if health.agent_uptime_s is not None:
            up += f", agent {health.agent_uptime_s:.0f} s"
        agent = Check(
            name="agent", ok=health.status == "ok", detail=f"answers over vsock, version {health.agent_version}, {up}"
        )
        services = sorted((name, state) for name, state in health.services.items() if state != "absent")
        checks = [_service(vm, name, state, health.uptime_s) for name, state in services if name != "opencode"]
        if vm.opencode:
            checks.append(await self._server(vm, health.uptime_s))
        return [agent, *checks]

    async def _server(self, vm: Vm, uptime_s: float) -> Check:
        try:
            await self._opencode.ask(vm, answer_s=CHECK_TIMEOUT_S)
        except BangerError as error:
            if uptime_s < self._opencode.deadline_s(vm, cold=True):
                return _starting("opencode", uptime_s)
            hint = f"banger vm exec {vm.name} -- journalctl -u opencode -n 50"
            return Check(name="opencode", ok=False, detail=error.message, hint=hint)
        return Check(name="opencode", ok=True, detail=f"answers on guest port {OPENCODE_PORT}")


def _result(vm: Vm, status: str, checks: list[Check]) -> VmHealth:
    now = time.time()
    told = tuple(msgspec.structs.replace(check, checked_at=now, since=now) for check in checks)
    return VmHealth(name=vm.name, status=status, checked_at=now, checks=told)


def _engine_process(vm: Vm) -> Check:
    ok = vm.process is not None and alive(vm.process)
    pid = vm.process.pid if vm.process else 0
    return Check(
        name="engine",
        ok=ok,
        detail=f"{vm.engine} on {vm.accelerator}, pid {pid}" if ok else "the engine process has ended",
        hint="" if ok else f"banger vm start {vm.name}",
    )


def _service(vm: Vm, name: str, state: str, uptime_s: float) -> Check:
    if state != "running" and uptime_s < STARTING_S:
        return _starting(f"service {name}", uptime_s)
    hint = f"banger vm exec {vm.name} -- systemctl status {name}"
    return Check(name=f"service {name}", ok=state == "running", detail=state, hint="" if state == "running" else hint)


def _starting(name: str, uptime_s: float) -> Check:
    return Check(name=name, ok=True, starting=True, detail=f"starting; the guest is up for {uptime_s:.0f} s")


def _lasting(health: VmHealth, before: VmHealth | None) -> VmHealth:
    """The health with each check's `since` carried on from the health before, while it says the same."""
    begun = {(check.name, check.ok): check.since for check in before.checks} if before else {}
    checks = (msgspec.structs.replace(c, since=begun.get((c.name, c.ok), c.since)) for c in health.checks)
    return msgspec.structs.replace(health, checks=tuple(checks))


class Monitor:
    """Watches each live VM: wakes at the end of its engine, and asks for its health now and then."""

    def __init__(
        self,
        checks: Checks,
        period_s: float,
        find: Callable[[str], Vm | None],
        ended: Ended,
        truth: Truth | None = None,
        pressure: Pressure | None = None,
    ) -> None:
        self._checks = checks
        self._period_s = period_s
        self._find = find
        self._ended = ended
        self._truth = truth
        self._pressure = pressure
        self._tasks: dict[str, list[asyncio.Task[None]]] = {}
        self._last: dict[str, VmHealth] = {}

    async def begin(self, vm: Vm) -> None:
        """Begin to watch a VM that has just become healthy."""
        self.watch(vm, at_once=False)
        await self.check(vm)

    def watch(self, vm: Vm, *, at_once: bool = True) -> None:
        """Begin to watch a live VM."""
        self.forget(vm.id)
        self._tasks[vm.id] = [
            asyncio.create_task(self._until_end(vm)),
            asyncio.create_task(self._check_often(vm.id, at_once=at_once)),
        ]
        if self._truth is not None:
            self._tasks[vm.id].append(asyncio.create_task(self._truth.follow(vm)))
        if self._pressure is not None:
            self._pressure.watch(vm.id)

    def forget(self, vm_id: str) -> None:
        self._last.pop(vm_id, None)
        if self._pressure is not None:
            self._pressure.forget(vm_id)
        for task in self._tasks.pop(vm_id, ()):
            task.cancel()

    def status(self, vm: Vm) -> str:
        """The last known health in one word."""
        if vm.state not in LIVE:
            return "stopped"
        last = self._last.get(vm.id)
        return last.status if last else "unknown"

    async def check(self, vm: Vm) -> VmHealth:
        """Check now; the VM's record is true to its engine first."""
        if self._truth is not None:
            vm = await self._truth.of(vm)
        health = _lasting(await self._checks.check(vm), self._last.get(vm.id))
        if vm.id in self._tasks:
            self._last[vm.id] = health
        return health

    async def settle(self, vm_id: str, wait_s: float) -> VmHealth | None:
        """Check until the VM is healthy with nothing on its way, at most `wait_s` seconds; None when it is gone."""
        deadline = time.monotonic() + wait_s
        health = None
        while (vm := self._find(vm_id)) is not None:
            health = await self.check(vm)
            if health.settled or vm.state not in LIVE or time.monotonic() >= deadline:
                break
            await asyncio.sleep(SETTLE_S)
        return health

    async def close(self) -> None:
        tasks = [task for pair in self._tasks.values() for task in pair]
        for vm_id in list(self._tasks):
            self.forget(vm_id)
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._truth is not None:
            self._truth.close()

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
