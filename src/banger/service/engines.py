"""Engines: list, install, remove."""

from collections.abc import Awaitable, Callable, Iterable, Mapping

from banger.engine import install
from banger.engine.installed import find_engines
from banger.engine.select import Accelerator
from banger.jobs.operations import Job, Operations
from banger.model.engine import EngineInfo, EngineInstalled, EngineInstallSpec
from banger.model.errors import BangerError, NotFound
from banger.model.operation import Operation
from banger.model.vm import Vm
from banger.paths import Paths
from banger.system.host import command_lines, start_ticks

InUse = Callable[[], Mapping[str, str]]


class EngineService:
    """Everything that the API offers of engines.

    `accelerator` is the one that was proven to work, or raises why there is none; `in_use` tells the programs
    that run, each with its VM's name.
    """

    def __init__(
        self,
        paths: Paths,
        operations: Operations,
        accelerator: Callable[[], Awaitable[Accelerator]],
        in_use: InUse,
    ) -> None:
        self._paths = paths
        self._operations = operations
        self._accelerator = accelerator
        self._in_use = in_use

    async def list(self, *, check_digests: bool = False) -> list[EngineInfo]:
        """Every engine on this host, whether it can be used or not; an accelerator that fails is no error here."""
        try:
            accelerator = await self._accelerator()
        except BangerError as error:
            accelerator = Accelerator("none", error.message, "")
        return await find_engines(self._paths, accelerator, check_digests=check_digests)

    def install(self, spec: EngineInstallSpec) -> Operation:
        """Begin `engine.install`. Raises `Invalid` before anything is fetched."""
        plan = install.make_plan(spec)

        async def work(job: Job) -> EngineInstalled:
            return await install.install(self._paths, plan, job)

        return self._operations.begin("engine.install", _target(plan.version), work)

    async def remove(self, name: str, version: str) -> None:
        """Remove an installed release. Raises `NotFound`, `Busy` while a VM runs from it or it is being installed."""
        if name != install.NAME:
            raise NotFound(f"no engine {name} is installed", hint="`banger engine list` shows what there is")
        self._operations.check_free(_target(version.removeprefix("v")))
        await install.remove(self._paths, version, self._in_use)

    async def sweep(self) -> None:
        """Remove what a killed daemon left half-made; at start only."""
        await install.sweep(self._paths)


def _target(version: str) -> str:
    return f"engine/{install.NAME}-{version}"


def programs_in_use(vms: Iterable[Vm]) -> dict[str, str]:
    """The program of each VM's running engine, and the VM's name. A jailed engine runs from a copy of its own."""
    # a pid alone may have gone to another process; its start time tells
    running = {
        vm.process.pid: vm.name
        for vm in vms
        if vm.process is not None and start_ticks(vm.process.pid) == vm.process.start_ticks
    }
    return {argv[0]: running[pid] for pid, argv in command_lines().items() if pid in running and argv}
