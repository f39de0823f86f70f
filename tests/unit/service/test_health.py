"""What is said of a VM's health, by the real agent behind an engine that is pretended."""

import asyncio
import contextlib
from pathlib import Path

import msgspec

from banger.model.vm import Vm, VmState
from banger.service.health import Monitor
from tests.unit.service.pretend import pretended, running_vm


def test_each_check_is_told_with_its_time_and_how_long_it_has_said_so(tmp_path: Path) -> None:
    async def body() -> None:
        vm = running_vm()
        async with pretended(tmp_path) as (checks, _, _):
            monitor = Monitor(checks, 60, lambda _: vm, lambda *_: None)
            with contextlib.ExitStack() as undo:
                monitor.watch(vm, at_once=False)
                undo.callback(monitor.forget, vm.id)
                first, second = await monitor.check(vm), await monitor.check(vm)
        assert [check.name for check in first.checks][:3] == ["engine", "engine-api", "agent"]
        assert first.status == second.status == "healthy"
        for before, after in zip(first.checks, second.checks, strict=True):
            assert before.checked_at < after.checked_at
            assert after.since == before.since == before.checked_at

    asyncio.run(body())


def test_an_agent_that_is_gone_is_said_with_a_next_step_and_begins_anew(tmp_path: Path) -> None:
    async def body() -> None:
        vm = running_vm()
        async with pretended(tmp_path) as (checks, _, agent_socket):
            monitor = Monitor(checks, 60, lambda _: vm, lambda *_: None)
            monitor.watch(vm, at_once=False)
            await monitor.check(vm)
            hidden = agent_socket.rename(tmp_path / "hidden")
            gone = await monitor.check(vm)
            hidden.rename(agent_socket)
            back = await monitor.check(vm)
            monitor.forget(vm.id)
        failed = gone.first_failure
        assert failed is not None
        assert (gone.status, failed.name, failed.since) == ("unhealthy", "agent", failed.checked_at)
        assert "vm logs a" in failed.hint
        agent = next(check for check in back.checks if check.name == "agent")
        assert back.status == "healthy"
        assert agent.since == agent.checked_at

    asyncio.run(body())


def test_a_stopped_vm_has_one_check_that_says_how_to_start_it(tmp_path: Path) -> None:
    async def body() -> None:
        vm = running_vm(state=VmState.STOPPED, problem="the guest powered off")
        async with pretended(tmp_path) as (checks, _, _):
            health = await checks.check(vm)
        (check,) = health.checks
        assert (health.status, check.ok, check.detail, check.hint) == (
            "stopped",
            False,
            "the guest powered off",
            "banger vm start a",
        )

    asyncio.run(body())


def test_settling_ends_when_the_vm_stops_or_time_is_up(tmp_path: Path) -> None:
    async def body() -> None:
        vm = running_vm(opencode=True)  # nothing listens: it is still starting, or the host has been up for long

        def find(_: str) -> Vm | None:
            return found

        async with pretended(tmp_path) as (checks, _, _):
            monitor = Monitor(checks, 60, find, lambda *_: None)
            found: Vm | None = vm
            health = await monitor.settle(vm.id, 0.6)
            assert health is not None
            assert not health.settled
            found = msgspec.structs.replace(vm, state=VmState.STOPPED)
            stopped = await monitor.settle(vm.id, 60)
            assert stopped is not None
            assert stopped.status == "stopped"
            found = None
            assert await monitor.settle(vm.id, 60) is None

    asyncio.run(body())
