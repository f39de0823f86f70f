"""The daemon's API as typed methods."""

import json
import socket
from collections.abc import Callable, Iterator
from typing import Any, TypeVar
from urllib.parse import quote, urlencode

import msgspec

from banger import __version__
from banger.client.autostart import dial_or_start
from banger.client.transport import DaemonLost, Reply, dial, send
from banger.model.daemon import DaemonStatus
from banger.model.errors import Internal
from banger.model.operation import Event, EventKind, Operation
from banger.model.vm import VmDocument, VmHealth, VmSpec
from banger.paths import Paths

T = TypeVar("T")
VERSION_HEADER = b"x-banger-version"


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
        reply = send(self.dial(), method, target, b"" if body is None else msgspec.json.encode(body))
        version = reply.headers.get(VERSION_HEADER, b"").decode()
        if version and version != __version__:
            self._warn(f"the running daemon is banger {version}, this is {__version__}; `banger daemon stop` ends it")
        return reply

    def _get(self, target: str, kind: type[T], method: str = "GET", body: object = None) -> T:
        try:
            return msgspec.json.decode(self._send(method, target, body).body(), type=kind)
        except msgspec.DecodeError as error:
            raise Internal(f"the daemon's answer is not understood: {error}", hint="`banger daemon stop`") from error

    # VMs
    def list_vms(self) -> list[VmDocument]:
        return self._get("/vms", list[VmDocument])

    def show_vm(self, reference: str) -> VmDocument:
        return self._get(_vm(reference), VmDocument)

    def create_vm(self, spec: VmSpec) -> Operation:
        return self._get("/vms", Operation, "POST", spec)

    def change_vm(self, reference: str, verb: str, *, force: bool = False) -> Operation:
        """`verb` is start, stop or restart."""
        query = "?force=true" if force else ""
        return self._get(f"{_vm(reference)}/{verb}{query}", Operation, "POST")

    def delete_vm(self, reference: str) -> Operation:
        return self._get(_vm(reference), Operation, "DELETE")

    def vm_health(self, reference: str) -> VmHealth:
        return self._get(f"{_vm(reference)}/health", VmHealth)

    def vm_logs(self, reference: str, source: str, limit: int) -> str:
        target = f"{_vm(reference)}/logs?{urlencode({'source': source, 'limit': limit})}"
        return self._send("GET", target).body().decode(errors="replace")

    # images
    def list_images(self) -> list[dict[str, Any]]:
        return self._get("/images", list[dict[str, Any]])

    def show_image(self, name: str) -> dict[str, Any]:
        return self._get(f"/images/{quote(name, safe='')}", dict[str, Any])

    def bootstrap_image(self, spec: dict[str, Any]) -> Operation:
        return self._get("/images/bootstrap", Operation, "POST", spec)

    # operations
    def list_operations(self, limit: int = 100) -> list[Operation]:
        return self._get(f"/operations?limit={limit}", list[Operation])

    def show_operation(self, reference: str) -> Operation:
        return self._get(_operation(reference), Operation)

    def cancel_operation(self, reference: str) -> Operation:
        return self._get(f"{_operation(reference)}/cancel", Operation, "POST")

    def follow(self, reference: str, after: int = 0) -> Iterator[Event]:
        """Events after a sequence number, until the end; a daemon that restarts in between is asked again, once."""
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
        return self._get("/daemon", DaemonStatus)

    def stop_daemon(self) -> DaemonStatus:
        return self._get("/daemon/stop", DaemonStatus, "POST")


def _vm(reference: str) -> str:
    return f"/vms/{quote(reference, safe='')}"


def _operation(reference: str) -> str:
    return f"/operations/{quote(reference, safe='')}"


def _events(chunks: Iterator[bytes]) -> Iterator[Event]:
    """Server-sent events (HTML standard, section 9.2) whose data is one line of JSON."""
    pending = b""
    for chunk in chunks:
        pending += chunk
        *lines, pending = pending.split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                yield msgspec.convert(json.loads(line[5:]), Event)
