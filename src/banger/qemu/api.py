"""The Firecracker API: which request means what, and when it is allowed."""

import re
from collections.abc import Awaitable, Callable
from typing import NamedTuple, TypeVar

import msgspec

from banger import __version__
from banger.model.errors import BangerError, Invalid
from banger.model.firecracker import (
    Balloon,
    BalloonStatsUpdate,
    BalloonUpdate,
    BootSource,
    Document,
    Drive,
    EntropyDevice,
    Error,
    FirecrackerVersion,
    FullVmConfiguration,
    InstanceActionInfo,
    InstanceInfo,
    Logger,
    MachineConfiguration,
    MachineUpdate,
    NetworkInterface,
    PartialDrive,
    PartialNetworkInterface,
    SerialDevice,
    Vm,
    Vsock,
)
from banger.model.firecracker import Metrics as MetricsDocument
from banger.qemu.live import updated
from banger.qemu.logs import LogHandler
from banger.qemu.machine import NO_NET_LIMITER, Configuration
from banger.qemu.metrics import Metrics
from banger.qemu.options import API_VERSION
from banger.qemu.refusals import REFUSALS
from banger.qemu.vmm import Vmm

APP_NAME = "banger-vmm"
T = TypeVar("T", bound=Document)
_ID = re.compile(r"[A-Za-z0-9_]+")
_BEFORE_START = "The requested operation is not supported before starting the microVM."
_AFTER_START = "The requested operation is not supported after starting the microVM."
_NO_BALLOON = "No balloon device found."
_COLLECTIONS = ("drives", "network-interfaces", "pmem")


class Reply(NamedTuple):
    """A status code and a JSON body, empty for 204."""

    status: int
    body: bytes = b""


DONE = Reply(204)


def fault(message: str) -> Reply:
    return Reply(400, msgspec.json.encode(Error(fault_message=message)))


def _found(document: object) -> Reply:
    return Reply(200, msgspec.json.encode(document))


class Api:
    """Answers requests, one at a time, about the one VM of this process."""

    def __init__(self, vm_id: str, vmm: Vmm, logs: LogHandler, metrics: Metrics) -> None:
        self._id = vm_id
        self._vmm = vmm
        self._logs = logs
        self._metrics = metrics
        self._config = Configuration()
        self._started = False

    async def handle(self, method: str, target: str, body: bytes) -> Reply:
        """Never raises for anything a client sends."""
        path = target.split("?", 1)[0]
        try:
            reply = await self._dispatch(method, path, body)
        except BangerError as error:
            reply = fault(error.message)
        except (msgspec.DecodeError, RecursionError) as error:
            reply = fault(f"An error occurred when deserializing the json body of a request: {error}.")
        self._metrics.request(method, path, failed=reply.status >= 400)
        return reply

    async def _dispatch(self, method: str, path: str, body: bytes) -> Reply:
        template, item = _template(path)
        if reason := REFUSALS.get((method, template)):
            return fault(f"{method} {path} is not supported by {APP_NAME}: {reason}.")
        handler = ROUTES.get((method, template))
        if handler is None:
            return fault(f"Invalid request method and/or path: {method} {path}.")
        if body and method == "GET":
            return fault("GET request cannot have a body.")
        if not body and method != "GET":
            return fault(f"Empty {method} request.")
        if item is not None:
            if not item:
                return fault("The ID cannot be empty.")
            if not _ID.fullmatch(item):
                return fault("API Resource IDs can only contain alphanumeric characters and underscores.")
            return await handler(self, body, item)
        return await handler(self, body, "")

    def _before(self, body: bytes, kind: type[T]) -> T:
        """The document of a request that is for the time before the start."""
        document = msgspec.json.decode(body, type=kind)
        if self._started:
            raise Invalid(_AFTER_START)
        return document

    def _after(self, body: bytes, kind: type[T]) -> T:
        document = msgspec.json.decode(body, type=kind)
        self._need_started()
        return document

    def _need_started(self) -> None:
        if not self._started:
            raise Invalid(_BEFORE_START)

    # what is

    async def describe(self, _: bytes, __: str) -> Reply:
        running = "Running" if self._vmm.running else "Paused"
        state: dict[str, str] = {"state": running if self._started else "Not started"}
        return _found(InstanceInfo(app_name=APP_NAME, id=self._id, vmm_version=__version__, **state))  # type: ignore[arg-type]

    async def version(self, _: bytes, __: str) -> Reply:
        return _found(FirecrackerVersion(firecracker_version=API_VERSION))

    async def whole(self, _: bytes, __: str) -> Reply:
        return _found(self._config.whole())

    async def get_machine(self, _: bytes, __: str) -> Reply:
        fields = msgspec.structs.asdict(self._config.machine)
        return _found({name: value for name, value in fields.items() if value is not None})

    async def get_balloon(self, _: bytes, __: str) -> Reply:
        return _found(msgspec.structs.asdict(self._balloon()))

    async def get_balloon_stats(self, _: bytes, __: str) -> Reply:
        self._need_started()
        balloon = self._balloon()
        if not balloon.stats_polling_interval_s:
            raise Invalid("The balloon device statistics were not enabled when the device was configured.")
        return _found(await self._vmm.live.balloon_stats(self._config.machine.mem_size_mib, balloon.amount_mib))

    def _balloon(self) -> Balloon:
        if self._config.balloon is None:
            raise Invalid(_NO_BALLOON)
        return self._config.balloon

    # what shall be: before the start only

    async def put_machine(self, body: bytes, _: str) -> Reply:
        self._config.put_machine(self._before(body, MachineConfiguration))
        return DONE

    async def patch_machine(self, body: bytes, _: str) -> Reply:
        self._config.patch_machine(self._before(body, MachineUpdate))
        return DONE

    async def put_boot(self, body: bytes, _: str) -> Reply:
        self._config.put_boot(self._before(body, BootSource))
        return DONE

    async def put_drive(self, body: bytes, item: str) -> Reply:
        document = self._before(body, Drive)
        _same_id(item, document.drive_id)
        self._config.put_drive(document)
        return DONE

    async def put_nic(self, body: bytes, item: str) -> Reply:
        document = self._before(body, NetworkInterface)
        _same_id(item, document.iface_id)
        self._config.put_nic(document)
        return DONE

    async def put_vsock(self, body: bytes, _: str) -> Reply:
        self._config.vsock = self._before(body, Vsock)
        return DONE

    async def put_balloon(self, body: bytes, _: str) -> Reply:
        self._config.put_balloon(self._before(body, Balloon))
        return DONE

    async def put_entropy(self, body: bytes, _: str) -> Reply:
        self._config.entropy = self._before(body, EntropyDevice)
        return DONE

    async def put_serial(self, body: bytes, _: str) -> Reply:
        self._config.serial = self._before(body, SerialDevice)
        return DONE

    async def put_logger(self, body: bytes, _: str) -> Reply:
        self._set_logger(self._before(body, Logger))
        return DONE

    async def put_metrics(self, body: bytes, _: str) -> Reply:
        self._set_metrics(self._before(body, MetricsDocument))
        return DONE

    def _set_logger(self, document: Logger) -> None:
        self._logs.configure(document)
        self._config.logger = document

    def _set_metrics(self, document: MetricsDocument) -> None:
        self._metrics.configure(document, self._id)
        self._config.metrics = document

    # what happens

    async def act(self, body: bytes, _: str) -> Reply:
        action = msgspec.json.decode(body, type=InstanceActionInfo).action_type
        if action == "InstanceStart":
            if self._started:
                raise Invalid(_AFTER_START)
            await self.start()
            return DONE
        self._need_started()
        if action == "SendCtrlAltDel":
            await self._vmm.ctrl_alt_del()
        else:
            await self.flush_metrics()
        return DONE

    async def start(self) -> None:
        """InstanceStart. Raises `Invalid`, `CommandFailed`; it may be tried again then."""
        await self._vmm.start(self._config)
        self._started = True

    async def flush_metrics(self) -> None:
        """Write a line of metrics, if they are configured."""
        if self._metrics.configured:
            self._metrics.flush(await self._vmm.measured())

    async def apply(self, document: FullVmConfiguration) -> None:
        """All that a configuration file says, as if each part had been PUT. Raises `Invalid` naming the part."""
        for part in ("cpu_config", "memory_hotplug", "mmds_config", "pmem"):
            if getattr(document, part):
                raise Invalid(f"{part.replace('_', '-')} is not supported by {APP_NAME}")
        if document.logger is not None:
            self._set_logger(document.logger)
        if document.metrics is not None:
            self._set_metrics(document.metrics)
        if document.boot_source is None:
            raise Invalid("boot-source is missing")
        self._config.put_machine(document.machine_config or self._config.machine)
        self._config.put_boot(document.boot_source)
        for drive in document.drives:
            self._config.put_drive(drive)
        for nic in document.network_interfaces:
            self._config.put_nic(nic)
        if document.balloon is not None:
            self._config.put_balloon(document.balloon)
        self._config.vsock, self._config.entropy = document.vsock, document.entropy

    async def patch_vm(self, body: bytes, _: str) -> Reply:
        wanted = self._after(body, Vm).state
        with self._metrics.latency("pause_vm" if wanted == "Paused" else "resume_vm"):
            await self._vmm.pause() if wanted == "Paused" else await self._vmm.resume()
        return DONE

    async def patch_drive(self, body: bytes, item: str) -> Reply:
        document = self._after(body, PartialDrive)
        _same_id(item, document.drive_id)
        try:
            await self._vmm.patch_drive(document)
        except BangerError:
            self._metrics.count("block", "update_fails")
            raise
        self._metrics.count("block", "update_count")
        return DONE

    async def patch_nic(self, body: bytes, item: str) -> Reply:
        document = self._after(body, PartialNetworkInterface)
        _same_id(item, document.iface_id)
        raise Invalid(f"PATCH of a network interface is not supported by {APP_NAME}: {NO_NET_LIMITER}.")

    async def patch_balloon(self, body: bytes, _: str) -> Reply:
        document, balloon = self._after(body, BalloonUpdate), self._balloon()
        self._config.check_balloon(document.amount_mib)
        await self._vmm.live.inflate(self._config.machine.mem_size_mib, document.amount_mib)
        self._config.balloon = updated(balloon, amount_mib=document.amount_mib)
        return DONE

    async def patch_balloon_stats(self, body: bytes, _: str) -> Reply:
        document, balloon = self._after(body, BalloonStatsUpdate), self._balloon()
        changed = updated(balloon, stats_polling_interval_s=document.stats_polling_interval_s)
        await self._vmm.live.poll_balloon(document.stats_polling_interval_s)
        self._config.balloon = changed
        return DONE


Handler = Callable[[Api, bytes, str], Awaitable[Reply]]
ROUTES: dict[tuple[str, str], Handler] = {
    ("GET", "/"): Api.describe,
    ("GET", "/version"): Api.version,
    ("GET", "/vm/config"): Api.whole,
    ("PATCH", "/vm"): Api.patch_vm,
    ("GET", "/machine-config"): Api.get_machine,
    ("PUT", "/machine-config"): Api.put_machine,
    ("PATCH", "/machine-config"): Api.patch_machine,
    ("PUT", "/boot-source"): Api.put_boot,
    ("PUT", "/drives/{id}"): Api.put_drive,
    ("PATCH", "/drives/{id}"): Api.patch_drive,
    ("PUT", "/network-interfaces/{id}"): Api.put_nic,
    ("PATCH", "/network-interfaces/{id}"): Api.patch_nic,
    ("PUT", "/vsock"): Api.put_vsock,
    ("PUT", "/entropy"): Api.put_entropy,
    ("PUT", "/serial"): Api.put_serial,
    ("PUT", "/logger"): Api.put_logger,
    ("PUT", "/metrics"): Api.put_metrics,
    ("PUT", "/balloon"): Api.put_balloon,
    ("GET", "/balloon"): Api.get_balloon,
    ("PATCH", "/balloon"): Api.patch_balloon,
    ("GET", "/balloon/statistics"): Api.get_balloon_stats,
    ("PATCH", "/balloon/statistics"): Api.patch_balloon_stats,
    ("PUT", "/actions"): Api.act,
}


def _template(path: str) -> tuple[str, str | None]:
    """The path as the specification writes it, and the id in it; a slash at the end does not count."""
    first, slash, rest = path.strip("/").partition("/")
    if first in _COLLECTIONS and "/" not in rest:
        return f"/{first}/{{id}}", rest
    return f"/{first}{slash}{rest}", None


def _same_id(in_path: str, in_body: str) -> None:
    if in_path != in_body:
        raise Invalid(f"The id from the path [{in_path}] does not match the id from the body [{in_body}]!")
