"""The daemon's API as typed methods."""

from __future__ import annotations

import json
import socket
from base64 import urlsafe_b64encode
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote, urlencode

from banger import __version__
from banger.client.autostart import dial_or_start
from banger.client.transport import DaemonLost, Reply, dial, send
from banger.model.errors import Internal
from banger.paths import Paths

if TYPE_CHECKING:
    from banger.model.capacity import Capacity
    from banger.model.commit import CommitSpec
    from banger.model.daemon import DaemonStatus
    from banger.model.documents import VmDocument, VolumeDocument
    from banger.model.operation import Event, Operation
    from banger.model.recipe import BuildSpec
    from banger.model.vm import OpencodeAccess, Report, VmChange, VmHealth, VmSpec

T = TypeVar("T")
VERSION_HEADER = "x-banger-version"


class Client:
    """A person's connection to their daemon, which is started at need.

    Every method raises the errors that the daemon reports, as the same classes. `warn` hears of a
    daemon of another version.
    """

    def __init__(self, paths: Paths, *, start: bool = True, warn: Callable[[str], None] = lambda _: None) -> None:
        self._paths = paths
        self._start = start
        self._warn = warn

    def dial(self) -> socket.socket:
        return dial_or_start(self._paths) if self._start else dial(self._paths.daemon_socket)

    def _send(self, method: str, target: str, body: object = None) -> Reply:
        reply = send(self.dial(), method, target, b"" if body is None else json.dumps(body, default=_builtins).encode())
        version = reply.headers.get(VERSION_HEADER)
        if version and version != __version__:
            self._warn(f"the running daemon is banger {version}, this is {__version__}; `banger daemon stop` ends it")
        return reply

    def _json(self, method: str, target: str, body: object = None) -> Any:
        try:
            return json.loads(self._send(method, target, body).body())
        except ValueError as error:
            raise _misunderstood(error) from error

    def _begin(self, method: str, target: str, body: object = None) -> Operation:
        from banger.model.operation import Operation

        return _convert(self._json(method, target, body), Operation)

    # VMs
    def list_vms(self) -> list[VmDocument]:
        vms: list[VmDocument] = self._json("GET", "/vms")
        return vms

    def show_vm(self, reference: str) -> VmDocument:
        vm: VmDocument = self._json("GET", _vm(reference))
        return vm

    def create_vm(self, spec: VmSpec) -> Operation:
        return self._begin("POST", "/vms", spec)

    def change_vm(self, reference: str, verb: str, **flags: bool) -> Operation:
        """`verb` is start, stop, restart, pause or resume; the flags are those of its route."""
        query = urlencode({name: str(value).lower() for name, value in flags.items()})
        return self._begin("POST", f"{_vm(reference)}/{verb}{'?' if query else ''}{query}")

    def set_vm(self, reference: str, change: VmChange) -> Operation:
        return self._begin("PATCH", _vm(reference), change)

    def delete_vm(self, reference: str, *, keep_work_disk: bool = False) -> Operation:
        return self._begin("DELETE", f"{_vm(reference)}{'?keep_work_disk=true' if keep_work_disk else ''}")

    def check_vm(self, reference: str) -> Operation:
        return self._begin("POST", f"{_vm(reference)}/check")

    def vm_health(self, reference: str, *, wait_s: float = 0.0) -> VmHealth:
        from banger.model.vm import VmHealth

        return _convert(self._json("GET", f"{_vm(reference)}/health?wait={wait_s:g}"), VmHealth)

    def vm_opencode(self, reference: str) -> OpencodeAccess:
        from banger.model.vm import OpencodeAccess

        return _convert(self._json("GET", f"{_vm(reference)}/opencode"), OpencodeAccess)

    def report_vm(self, reference: str) -> Report:
        from banger.model.vm import Report

        return _convert(self._json("POST", f"{_vm(reference)}/report"), Report)

    def vm_logs(self, reference: str, source: str, limit: int) -> bytes:
        """The last `limit` bytes of the `console` or `engine` log."""
        return self._send("GET", f"{_vm(reference)}/logs?{urlencode({'source': source, 'limit': limit})}").body()

    def follow_logs(self, reference: str, source: str, seen: bytes) -> Reply:
        """What comes behind the last bytes seen, without an end; `client.logs` makes more of it."""
        after = urlsafe_b64encode(seen).decode()
        query = urlencode({"source": source, "follow": "true", "after": after})
        return self._send("GET", f"{_vm(reference)}/logs?{query}")

    # volumes
    def list_volumes(self) -> list[VolumeDocument]:
        volumes: list[VolumeDocument] = self._json("GET", "/volumes")
        return volumes

    def show_volume(self, name: str) -> VolumeDocument:
        volume: VolumeDocument = self._json("GET", _volume(name))
        return volume

    def attach_volume(self, name: str, vm: str) -> Operation:
        return self._begin("POST", f"{_volume(name)}/attach", {"vm": vm})

    def delete_volume(self, name: str) -> Operation:
        return self._begin("DELETE", _volume(name))

    # images
    def list_images(self) -> list[dict[str, Any]]:
        images: list[dict[str, Any]] = self._json("GET", "/images")
        return images

    def show_image(self, name: str) -> dict[str, Any]:
        image: dict[str, Any] = self._json("GET", f"/images/{quote(name, safe='')}")
        return image

    def bootstrap_image(self, spec: dict[str, Any]) -> Operation:
        return self._begin("POST", "/images/bootstrap", spec)

    def register_image(self, spec: dict[str, Any]) -> Operation:
        return self._begin("POST", "/images/register", spec)

    def promote_image(self, name: str, new: str | None) -> Operation:
        return self._begin("POST", f"/images/{quote(name, safe='')}/promote", {"new": new})

    def build_image(self, spec: BuildSpec) -> Operation:
        return self._begin("POST", "/images/build", spec)

    def commit_image(self, spec: CommitSpec) -> Operation:
        return self._begin("POST", "/images/commit", spec)

    def verify_image(self, name: str) -> Operation:
        return self._begin("POST", f"/images/{quote(name, safe='')}/verify")

    def delete_image(self, name: str, *, force: bool = False) -> Operation:
        return self._begin("DELETE", f"/images/{quote(name, safe='')}{'?force=true' if force else ''}")

    def rename_image(self, name: str, new: str) -> Operation:
        return self._begin("POST", f"/images/{quote(name, safe='')}/rename", {"name": new})

    def prune_images(self, *, everything: bool = False, dry_run: bool = False) -> Operation:
        return self._begin("POST", "/images/prune", {"all": everything, "dry_run": dry_run})

    def export_image(self, name: str, spec: dict[str, Any]) -> Operation:
        return self._begin("POST", f"/images/{quote(name, safe='')}/export", spec)

    def import_image(self, spec: dict[str, Any]) -> Operation:
        return self._begin("POST", "/images/import", spec)

    # engines
    def list_engines(self, *, verify: bool = False) -> list[dict[str, Any]]:
        engines: list[dict[str, Any]] = self._json("GET", f"/engines{'?verify=true' if verify else ''}")
        return engines

    def install_engine(self, spec: dict[str, Any]) -> Operation:
        return self._begin("POST", "/engines/install", spec)

    def remove_engine(self, name: str, version: str) -> None:
        self._send("DELETE", f"/engines/{quote(name, safe='')}/{quote(version, safe='')}").body()

    # the host
    def capacity(self) -> Capacity:
        from banger.model.capacity import Capacity

        return _convert(self._json("GET", "/capacity"), Capacity)

    # operations
    def list_operations(self, limit: int = 100) -> list[Operation]:
        from banger.model.operation import Operation

        return _convert(self._json("GET", f"/operations?limit={limit}"), list[Operation])

    def show_operation(self, reference: str) -> Operation:
        return self._begin("GET", _operation(reference))

    def cancel_operation(self, reference: str) -> Operation:
        return self._begin("POST", f"{_operation(reference)}/cancel")

    def follow(self, reference: str, after: int = 0) -> Iterator[Event]:
        """Events after a sequence number, until the end; a daemon that restarts in between is asked again, once."""
        from banger.model.operation import EventKind

        lost = False
        while True:
            try:
                for event in _events(self._send("GET", f"{_operation(reference)}/events?after={after}").chunks()):
                    after, lost = event.seq, False
                    yield event
                    if event.kind is EventKind.END:
                        return
            except DaemonLost:
                if lost:
                    raise
            if lost:
                raise DaemonLost("the operation's events ended too early", hint=f"banger operation show {reference}")
            lost = True

    # the daemon
    def daemon_status(self) -> DaemonStatus:
        return self._daemon("GET", "/daemon")

    def stop_daemon(self) -> DaemonStatus:
        return self._daemon("POST", "/daemon/stop")

    def _daemon(self, method: str, target: str) -> DaemonStatus:
        from banger.model.daemon import DaemonStatus

        return _convert(self._json(method, target), DaemonStatus)


def _builtins(value: object) -> Any:
    import msgspec

    return msgspec.to_builtins(value)


def _convert(value: object, kind: type[T]) -> T:
    import msgspec  # here, so that commands which print plain documents do not pay for it

    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise _misunderstood(error) from error


def _misunderstood(error: Exception) -> Internal:
    return Internal(f"the daemon's answer is not understood: {error}", hint="`banger daemon stop`, then try again")


def _vm(reference: str) -> str:
    return f"/vms/{quote(reference, safe='')}"


def _volume(name: str) -> str:
    return f"/volumes/{quote(name, safe='')}"


def _operation(reference: str) -> str:
    return f"/operations/{quote(reference, safe='')}"


def _events(chunks: Iterator[bytes]) -> Iterator[Event]:
    """Server-sent events (HTML standard, section 9.2) whose data is one line of JSON."""
    from banger.model.operation import Event

    pending = b""
    for chunk in chunks:
        pending += chunk
        *lines, pending = pending.split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                yield _convert(json.loads(line[5:]), Event)
