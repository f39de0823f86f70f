"""bangerd: the composition root, the only place that builds concrete objects."""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from pathlib import Path

import psutil
import uvicorn

from banger import __version__
from banger.api.app import create_app
from banger.api.services import Services
from banger.config import Settings
from banger.jobs.operations import Operations
from banger.model.daemon import DaemonStatus
from banger.model.errors import Conflict, HostRequirement
from banger.model.sizes import MIB
from banger.model.vm import LIVE
from banger.paths import Paths
from banger.service.admission import Admission
from banger.service.appliance import Appliance
from banger.service.archives import Archives
from banger.service.build_machine import BuildMachines
from banger.service.builds import BuildService
from banger.service.bundle import RuntimeBundle
from banger.service.capacity import CapacityService
from banger.service.catalogue import Catalogue
from banger.service.check import CheckService
from banger.service.commits import CommitService
from banger.service.disks import Disks
from banger.service.drafts import Drafts
from banger.service.engines import EngineService, programs_in_use
from banger.service.health import Checks, Monitor
from banger.service.images import ImageService
from banger.service.lifecycle import Lifecycle
from banger.service.oci import OciImports
from banger.service.opencode import Opencode
from banger.service.pressure import Pressure
from banger.service.reconcile import Reconciler
from banger.service.registration import Registration
from banger.service.report import Reporter
from banger.service.seeds import WorkSeeds
from banger.service.truth import Truth
from banger.service.vms import EngineChoice, VmService
from banger.service.volumes import VolumeService
from banger.store.db import open_database
from banger.store.operations import OperationStore
from banger.store.vms import VmStore
from banger.system.leftovers import end_left_over
from banger.system.locks import FileLock
from banger.system.process import own_programs

BACKLOG = 128
log = logging.getLogger(__name__)


class Daemon:
    """One daemon: its objects, its socket, its life."""

    def __init__(self, paths: Paths, settings: Settings) -> None:
        self._paths = paths
        self._settings = settings
        self._begun = time.monotonic()
        self._stop = asyncio.Event()

    async def run(self, ready: int | None) -> None:
        """Serve until SIGTERM, SIGINT or /daemon/stop. `ready` is a descriptor that hears of the open socket."""
        for directory in (self._paths.state, self._paths.runtime, self._paths.cache):
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = FileLock(self._paths.daemon_lock)
        if not lock.try_acquire():
            raise Conflict("a daemon is running already", hint="`banger daemon status` shows it")
        try:
            lock.write(f"{os.getpid()}\n")
            # first of all: what it is in the middle of would be settled, and it would write on
            for program in await end_left_over(str(self._paths.daemon_lock)):
                log.warning("a program of the daemon before this one was still running, and was ended: %s", program)
            own_programs(str(self._paths.daemon_lock))
            with contextlib.closing(open_database(self._paths.database, spare=True)) as database:
                self._vms = VmStore(database)
                self._operations = Operations(OperationStore(database))
                with _listen(self._paths.daemon_socket) as listener:
                    await self._serve(listener, ready)
        finally:
            lock.release()

    async def _serve(self, listener: socket.socket, ready: int | None) -> None:
        services, monitor = await self._assemble()
        self._operations.forget_older(self._settings.keep_operations_days * 86400)
        server = _Server(
            uvicorn.Config(
                create_app(services),
                log_config=None,
                access_log=False,
                lifespan="off",
                ws="wsproto",
                ws_max_size=1 << 20,
                timeout_graceful_shutdown=3,
            )
        )
        async with _signals(self._stop):
            serving = asyncio.create_task(server.serve(sockets=[listener]))
            _tell(ready)
            log.info("bangerd %s serves %s", __version__, self._paths.daemon_socket)
            await self._stop.wait()
            log.info("stopping; VMs go on running")
            await self._operations.close()
            await monitor.close()
            self._vm_service.end_streams()
            server.should_exit = True
            await serving

    async def _assemble(self) -> tuple[Services, Monitor]:
        """Every service, after what a dead daemon left has been settled."""
        paths, settings, operations = self._paths, self._settings, self._operations
        opencode = Opencode(paths, settings)
        checks = Checks(paths, opencode)
        admission = Admission(paths, settings)
        truth = Truth(paths, self._vms, operations, admission)
        pressure = Pressure(admission, truth, self._vms.get, self._pause)
        monitor = Monitor(checks, settings.health_period_s, self._vms.get, self._engine_ended, truth, pressure)
        bundle = RuntimeBundle(paths, settings)
        await bundle.open()
        choice = EngineChoice(paths, bundle.engine)
        disks = Disks(paths, admission, WorkSeeds(paths, bundle, operations, admission.room), bundle)
        lifecycle = Lifecycle(paths, settings, self._vms, choice, opencode, checks, admission, disks)
        self._vm_service = VmService(paths, self._vms, operations, lifecycle, monitor, opencode)
        appliance = Appliance(paths, settings, choice, admission.room)
        await appliance.sweep()  # before the workspaces, whose files its machines have open
        drafts = Drafts(paths, bundle, appliance, admission.room)
        images = ImageService(paths, operations, bundle, settings.npm_registry)
        catalogue = Catalogue(paths, self._vms, operations, settings.keep_layers_days)
        await catalogue.sweep()
        await images.sweep()
        engines = EngineService(paths, operations, choice.accelerator, lambda: programs_in_use(self._vms.all()))
        await engines.sweep()
        volumes = VolumeService(paths, self._vms, operations, self._vm_service.document)
        await volumes.sweep()  # before VMs are settled: what was being kept of one that goes is a volume then
        await Reconciler(paths, self._vms, operations, lifecycle, monitor).run()
        return Services(
            vms=self._vm_service,
            volumes=volumes,
            check=CheckService(paths, self._vms, operations, admission),
            images=images,
            builds=await self._builds(lifecycle, monitor, bundle, admission, drafts),
            commits=CommitService(paths, self._vms, operations, drafts, bundle, admission.room),
            catalogue=catalogue,
            registration=Registration(paths, self._vms, operations, drafts),
            archives=await self._archives(bundle, admission, drafts),
            engines=engines,
            capacity=CapacityService(paths, settings, self._vms),
            operations=operations,
            reporter=Reporter(paths, settings, self._vms, operations, monitor, engines, self._vm_service.document),
            daemon_status=self._status,
            stop_daemon=self._stop.set,
        ), monitor

    async def _archives(self, bundle: RuntimeBundle, admission: Admission, drafts: Drafts) -> Archives:
        paths, settings, operations = self._paths, self._settings, self._operations
        oci = OciImports(paths, operations, bundle, drafts, admission, settings.import_max_mib * MIB)
        archives = Archives(paths, settings, operations, bundle, admission, oci.import_image)
        await archives.sweep()
        return archives

    async def _builds(
        self, lifecycle: Lifecycle, monitor: Monitor, bundle: RuntimeBundle, admission: Admission, drafts: Drafts
    ) -> BuildService:
        machines = BuildMachines(self._paths, self._settings, self._vms, lifecycle, monitor, bundle, admission)
        builds = BuildService(self._paths, self._settings, self._vms, self._operations, machines, bundle, drafts)
        await builds.sweep()
        return builds

    def _engine_ended(self, vm_id: str, status: int | None) -> None:
        self._vm_service.engine_ended(vm_id, status)

    def _pause(self, vm_id: str, problem: str) -> None:
        self._vm_service.pause(vm_id, problem)

    def _status(self) -> DaemonStatus:
        vms = self._vms.all()
        return DaemonStatus(
            pid=os.getpid(),
            version=__version__,
            uptime_s=round(time.monotonic() - self._begun, 1),
            memory_bytes=psutil.Process().memory_full_info().pss,
            socket=str(self._paths.daemon_socket),
            state_dir=str(self._paths.state),
            log=str(self._paths.daemon_log),
            vms=len(vms),
            running_vms=sum(vm.state in LIVE for vm in vms),
            running_operations=self._operations.running,
        )


class _Server(uvicorn.Server):
    """uvicorn, less its signal handlers: ours end operations first."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@contextlib.contextmanager
def _listen(path: Path) -> Iterator[socket.socket]:
    """Our socket, 0600. A file that is there already is a dead daemon's: we hold the lock."""
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        mask = os.umask(0o177)
        try:
            listener.bind(str(path))
        finally:
            os.umask(mask)
        listener.listen(BACKLOG)
        try:
            yield listener
        finally:
            path.unlink(missing_ok=True)


@contextlib.asynccontextmanager
async def _signals(stop: asyncio.Event) -> AsyncIterator[None]:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    try:
        yield
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


def _tell(ready: int | None) -> None:
    if ready is not None:
        with contextlib.suppress(BrokenPipeError):
            os.write(ready, b"ready\n")
        os.close(ready)


def run(paths: Paths, settings: Settings, *, ready: int | None = None, warnings: Iterable[str] = ()) -> None:
    """Run a daemon in this process until it is told to stop; `warnings` go to its log first.

    Raises `Conflict`, `HostRequirement`, `Invalid` (the bundle).
    """
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        datefmt="%Y-%m-%dT%H:%M:%S%z",
    )
    for text in warnings:
        log.warning("%s", text)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    try:
        asyncio.run(Daemon(paths, settings).run(ready))
    except PermissionError as error:
        raise HostRequirement(
            f"the daemon cannot write {error.filename}", hint="set BANGER_STATE_DIR and BANGER_RUNTIME_DIR"
        ) from error
