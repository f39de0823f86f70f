"""Reports: one file with all that is known of a VM, for whoever looks for a fault. No secret is in it."""

import asyncio
import io
import os
import shutil
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from banger import __version__
from banger.config import Settings
from banger.engine.launch import tail
from banger.jobs.operations import Operations
from banger.model.documents import VmDocument
from banger.model.errors import BangerError, HostRequirement, NotFound
from banger.model.names import validate_name
from banger.model.operation import Operation
from banger.model.vm import Report, Vm, VmHealth
from banger.paths import Paths
from banger.service.engines import EngineService
from banger.service.health import Monitor
from banger.store.vms import VmStore
from banger.system.files import in_thread
from banger.system.process import run

LOG_BYTES = 1024 * 1024
COMMAND_S = 10.0
OPERATIONS_MAX = 50


class Reporter:
    """Writes reports into the state directory."""

    def __init__(
        self,
        paths: Paths,
        settings: Settings,
        vms: VmStore,
        operations: Operations,
        monitor: Monitor,
        engines: EngineService,
        document: Callable[[Vm], VmDocument],
    ) -> None:
        self._paths = paths
        self._settings = settings
        self._vms = vms
        self._operations = operations
        self._monitor = monitor
        self._engines = engines
        self._document = document

    async def write(self, reference: str) -> Report:
        """Write a report on a VM, or on what operations tell of one that is gone. Raises `NotFound`, `Invalid`,
        `HostRequirement` when it cannot be written, as on a full disk.
        """
        try:
            vm: Vm | None = self._vms.find(reference)
        except NotFound:
            vm = None
        name = vm.name if vm else validate_name(reference)
        operations = self._of(name)
        if vm is None and not operations:
            raise NotFound(
                f"there is no VM {name}, and no operation on one", hint="`banger vm list` shows what there is"
            )
        health = await self._monitor.check(vm) if vm else None
        vm = self._vms.get(vm.id) if vm else None  # the check may have found that the engine paused it
        parts = await self._parts(vm, health, operations)
        path = await self._place(f"{name}-{time.strftime('%Y%m%dT%H%M%S')}.tar.gz", parts)
        return Report(path=str(path), look=_look(health, operations))

    async def _place(self, name: str, parts: dict[str, bytes]) -> Path:
        """Write it into the state directory, or, where that is on a full disk, into the runtime directory."""
        failures = []
        for folder in (self._paths.reports, self._paths.runtime / "reports"):
            try:
                await in_thread(_pack, folder / name, parts)
                return folder / name
            except OSError as error:
                failures.append(f"{folder}: {error.strerror}")
        raise HostRequirement(
            f"the report cannot be written ({', '.join(failures)})", hint="`banger capacity` shows what takes the room"
        )

    def _of(self, name: str) -> list[Operation]:
        return [o for o in self._operations.all(1000) if o.target == f"vm/{name}"][:OPERATIONS_MAX]

    async def _parts(self, vm: Vm | None, health: VmHealth | None, operations: list[Operation]) -> dict[str, bytes]:
        events = {operation.id: self._operations.events(operation.id) for operation in operations}
        links, nat = await asyncio.gather(
            _output("ip", "-json", "-details", "link"), _output("nft", "-j", "list", "ruleset")
        )
        documents: dict[str, Any] = {
            "versions": await self._versions(),
            "settings": self._settings,
            "operations": operations,
            "events": events,
            "sockets": self._sockets(vm),
            "leases": {other.name: other.guest_ip for other in self._vms.all()},
        }
        parts = {"links.json": links, "nat.json": nat, "daemon.log": _log(self._paths.daemon_log)}
        if vm is not None:
            paths = self._paths.vm(vm.id)
            documents |= {"vm": self._document(vm), "health": health}
            for log in (paths.console_log, paths.engine_log):
                parts[log.name] = _log(log)
                parts[log.with_suffix(".previous.log").name] = _log(log.with_suffix(".previous.log"))
        return parts | {
            f"{title}.json": msgspec.json.format(msgspec.json.encode(content)) for title, content in documents.items()
        }

    async def _versions(self) -> dict[str, Any]:
        return {
            "banger": __version__,
            "host": " ".join(os.uname()),
            "engines": await self._engines.list(),
            "qemu": (await _output("qemu-system-x86_64", "--version")).decode(errors="replace").splitlines()[:1],
        }

    def _sockets(self, vm: Vm | None) -> dict[str, list[str]]:
        """The files of the runtime directory, and what the kernel says of our Unix sockets (proc_net_unix(5))."""
        folder = self._paths.vm(vm.id).runtime if vm else self._paths.runtime
        files = sorted(f"{oct(path.lstat().st_mode)} {path.name}" for path in folder.glob("*"))
        ours = [line for line in Path("/proc/net/unix").read_text().splitlines() if str(self._paths.runtime) in line]
        return {"files": files, "kernel": ours}


async def _output(program: str, *words: str) -> bytes:
    """What a program prints, or why it does not: a report has to be written on any host."""
    if shutil.which(program) is None:
        return f"{program} is not installed\n".encode()
    try:
        done = await run([program, *words], timeout=COMMAND_S, check=False)
    except BangerError as error:
        return f"{error.message}\n".encode()
    return done.stdout or done.stderr


def _log(path: Path) -> bytes:
    return tail(path, LOG_BYTES).encode()


def _pack(path: Path, parts: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    partial = path.with_name(f".{path.name}.partial")
    partial.unlink(missing_ok=True)
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file, tarfile.open(fileobj=file, mode="w:gz") as archive:
            for name, content in sorted(parts.items()):
                entry = tarfile.TarInfo(f"{path.name.removesuffix('.tar.gz')}/{name}")
                entry.size, entry.mode, entry.mtime = len(content), 0o600, int(time.time())
                archive.addfile(entry, io.BytesIO(content))
        partial.rename(path)
    finally:
        partial.unlink(missing_ok=True)


def _look(health: VmHealth | None, operations: list[Operation]) -> str:
    """The most telling thing: a check that fails, else the newest operation that did."""
    if health is not None and (check := health.first_failure) is not None:
        return f"health.json, {check.name}: {check.detail}"
    failed = next((operation for operation in operations if operation.error), None)
    if failed is not None and failed.error is not None:
        return f"operations.json, {failed.kind}: {failed.error['message']}"
    return "console.log, what the guest said last" if health else "events.json, the last stage"
