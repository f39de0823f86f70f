"""The Firecracker API: which request means what, and when it is allowed."""

import re
from collections.abc import Awaitable, Callable
from typing import NamedTuple, TypeVar

import msgspec

from banger import __version__
from banger.model.errors import BangerError, Invalid
from banger.model.firecracker import (
    BootSource,
    Document,
    Drive,
    Error,
    FirecrackerVersion,
    InstanceActionInfo,
    InstanceInfo,
    MachineConfiguration,
    NetworkInterface,
    Vm,
    Vsock,
)
from banger.qemu.machine import Configuration
from banger.qemu.vmm import Vmm

# The release of the API that is honoured, as clients compare it
API_VERSION = "1.17.0-dev"
APP_NAME = "banger-vmm"
T = TypeVar("T", bound=Document)
_ID = re.compile(r"[A-Za-z0-9_]{1,64}")
_UNSUPPORTED = (
    "/balloon", "/cpu-config", "/entropy", "/hotplug/memory", "/logger", "/metrics", "/mmds", "/pmem", "/serial",
    "/snapshot",
)  # fmt: skip
_RUNNING_ONLY = "The requested operation is not supported before starting the microVM."
_BEFORE_ONLY = "The requested operation is not supported after starting the microVM."


class Reply(NamedTuple):
    """A status code and a JSON body, empty for 204."""

    status: int
    body: bytes = b""


def fault(message: str) -> Reply:
    return Reply(400, msgspec.json.encode(Error(fault_message=message)))


class Api:
    """Answers requests, one at a time, about the one VM of this process."""

    def __init__(self, vm_id: str, vmm: Vmm) -> None:
        self._id = vm_id
        self._vmm = vmm
        self._config = Configuration()
        self._state = "Not started"

    async def handle(self, method: str, target: str, body: bytes) -> Reply:
        """Never raises for anything a client sends."""
        path = target.split("?", 1)[0]
        try:
            route = self._route(method, path)
            if route is None:
                return self._unknown(method, path)
            return await route(body)
        except BangerError as error:
            return fault(error.message)
        except (msgspec.DecodeError, RecursionError) as error:
            return fault(f"An error occurred when deserializing the json body of a request: {error}.")

    def _route(self, method: str, path: str) -> Callable[[bytes], Awaitable[Reply]] | None:
        fixed: dict[tuple[str, str], Callable[[bytes], Awaitable[Reply]]] = {
            ("GET", "/"): self._describe,
            ("GET", "/version"): self._version,
            ("GET", "/vm/config"): self._whole,
            ("GET", "/machine-config"): self._get_machine,
            ("PUT", "/machine-config"): self._put_machine,
            ("PATCH", "/machine-config"): self._patch_machine,
            ("PUT", "/boot-source"): self._put_boot,
            ("PUT", "/vsock"): self._put_vsock,
            ("PUT", "/actions"): self._act,
            ("PATCH", "/vm"): self._patch_vm,
        }
        if (method, path) in fixed:
            return fixed[method, path]
        collection, _, item = path[1:].partition("/")
        if method == "PUT" and _ID.fullmatch(item):
            if collection == "drives":
                return lambda body: self._put_drive(item, body)
            if collection == "network-interfaces":
                return lambda body: self._put_nic(item, body)
        return None

    def _unknown(self, method: str, path: str) -> Reply:
        known = ("/drives/", "/network-interfaces/", "/vm", "/machine-config", "/boot-source", "/vsock", "/actions")
        if path.startswith(_UNSUPPORTED) or (method in ("PATCH", "DELETE") and path.startswith(known)):
            return fault(f"{method} {path} is not supported by {APP_NAME} yet.")
        return fault(f"Invalid request method and/or path: {method} {path}.")

    # what is

    async def _describe(self, _: bytes) -> Reply:
        state: dict[str, str] = {"state": self._state}
        info = InstanceInfo(app_name=APP_NAME, id=self._id, vmm_version=__version__, **state)  # type: ignore[arg-type]
        return Reply(200, msgspec.json.encode(info))

    async def _version(self, _: bytes) -> Reply:
        return Reply(200, msgspec.json.encode(FirecrackerVersion(firecracker_version=API_VERSION)))

    async def _whole(self, _: bytes) -> Reply:
        return Reply(200, msgspec.json.encode(self._config.whole()))

    async def _get_machine(self, _: bytes) -> Reply:
        return Reply(200, msgspec.json.encode(msgspec.to_builtins(self._config.machine)))

    # what shall be: before the start only

    def _before(self, body: bytes, kind: type[T]) -> T:
        document = msgspec.json.decode(body, type=kind)
        if self._state != "Not started":
            raise Invalid(_BEFORE_ONLY)
        return document

    async def _put_machine(self, body: bytes) -> Reply:
        self._config.put_machine(self._before(body, MachineConfiguration))
        return Reply(204)

    async def _patch_machine(self, body: bytes) -> Reply:
        given = msgspec.json.decode(body, type=dict[str, object])
        if not given:
            raise Invalid("Empty PATCH request.")
        merged = msgspec.to_builtins(self._config.machine) | given
        self._config.put_machine(self._before(msgspec.json.encode(merged), MachineConfiguration))
        return Reply(204)

    async def _put_boot(self, body: bytes) -> Reply:
        self._config.put_boot(self._before(body, BootSource))
        return Reply(204)

    async def _put_drive(self, item: str, body: bytes) -> Reply:
        self._config.put_drive(item, self._before(body, Drive))
        return Reply(204)

    async def _put_nic(self, item: str, body: bytes) -> Reply:
        self._config.put_nic(item, self._before(body, NetworkInterface))
        return Reply(204)

    async def _put_vsock(self, body: bytes) -> Reply:
        self._config.put_vsock(self._before(body, Vsock))
        return Reply(204)

    # what happens

    async def _act(self, body: bytes) -> Reply:
        action = msgspec.json.decode(body, type=InstanceActionInfo).action_type
        if action == "InstanceStart":
            if self._state != "Not started":
                raise Invalid(_BEFORE_ONLY)
            await self._vmm.start(self._config)
            self._state = "Running"
        elif self._state == "Not started":
            raise Invalid(_RUNNING_ONLY)
        elif action == "SendCtrlAltDel":
            await self._vmm.ctrl_alt_del()
        else:
            raise Invalid(f"{action} is not supported by {APP_NAME} yet.")
        return Reply(204)

    async def _patch_vm(self, body: bytes) -> Reply:
        wanted = msgspec.json.decode(body, type=Vm).state
        if self._state == "Not started":
            raise Invalid(_RUNNING_ONLY)
        await self._vmm.command("stop" if wanted == "Paused" else "cont")
        self._state = "Paused" if wanted == "Paused" else "Running"
        return Reply(204)
