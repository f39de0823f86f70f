"""banger-vmm: the Firecracker API on a Unix socket, QEMU underneath.

The guest's serial console is our standard output, our log standard error. One process is one VM: it ends when
QEMU ends, and QEMU ends when it does.
"""

import argparse
import asyncio
import contextlib
import json
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

from banger import __version__
from banger.model.errors import BangerError, Conflict, HostRequirement, Invalid
from banger.paths import SOCKET_PATH_MAX, default_paths
from banger.qemu.options import API_VERSION, parse

if TYPE_CHECKING:
    from banger.qemu.api import Api
    from banger.qemu.server import Server

LAST_REQUEST_S = 3.0


def main() -> int:
    """The executable. Exit status: 0 after a guest that powered off or a polite end, 1 otherwise, 2 for bad usage."""
    try:
        arguments = parse()
        if arguments.version:
            print(f"banger-vmm v{__version__}\nFirecracker API v{API_VERSION}")
            return 0
        cache = arguments.accelerator_cache or default_paths().accelerators
        if arguments.probe_accelerator:
            from banger.qemu.accel import prove

            print(json.dumps(asyncio.run(prove(cache))))
            return 0
        return asyncio.run(_Process(arguments, cache).run())
    except BangerError as error:
        print(f"error: {error.message}", file=sys.stderr)
        if error.hint:
            print(f"hint:  {error.hint}", file=sys.stderr)
        return error.exit_code


class _Process:
    """One VM's process, from its first to its last breath."""

    def __init__(self, arguments: argparse.Namespace, cache: Path) -> None:
        from banger.model.firecracker import Logger, Metrics
        from banger.qemu import api, logs, metrics, server, vmm

        self._arguments = arguments
        self._metrics = metrics.Metrics()
        logger = Logger(
            log_path=arguments.log_path,
            level=arguments.level,
            show_level=arguments.show_level,
            show_log_origin=arguments.show_log_origin,
            module=arguments.module,
        )
        handler = logs.set_up(arguments.id, self._metrics, logger)
        options = vmm.Options(
            arguments.id,
            cache,
            console=sys.stdout.fileno(),
            keyboard=sys.stdin.fileno() if sys.stdin is not None else -1,
            backing_files=frozenset(str(Path(name).absolute()) for name in arguments.backing_file),
            boot_timer=arguments.boot_timer,
        )
        self._vmm = vmm.Vmm(options)
        self._api: Api = api.Api(arguments.id, self._vmm, handler, self._metrics)
        self._server: Server = server.Server(self._api.handle, arguments.http_api_max_payload_size)
        if arguments.metrics_path is not None:
            self._metrics.configure(Metrics(metrics_path=arguments.metrics_path), arguments.id)

    async def run(self) -> int:
        """Serve until the guest or somebody ends it; the exit status."""
        # each vsock connection takes a descriptor
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(self._vmm.stop)
            async with self._server.turn:  # early clients are answered when the file's machine runs, as by Firecracker
                if not self._arguments.no_api:
                    await stack.enter_async_context(self._serve(self._arguments.api_sock))
                self._note_start()
                if self._arguments.config_file is not None:
                    await self._start_from(self._arguments.config_file)
            await self._wait(stop)
            if not self._vmm.ended.is_set():
                await self._last_turn()
            await self._flush()
        self._metrics.close()
        return self._vmm.status

    @contextlib.asynccontextmanager
    async def _serve(self, path: Path) -> AsyncIterator[None]:
        from banger.qemu.logs import log

        listener = await asyncio.start_unix_server(self._server.connection, sock=_listen(path))
        log.info("banger-vmm %s serves %s", __version__, path)
        try:
            yield
        finally:
            listener.close()
            path.unlink(missing_ok=True)

    async def _start_from(self, path: Path) -> None:
        import msgspec

        from banger.model.firecracker import FullVmConfiguration

        try:
            document = msgspec.json.decode(path.read_bytes(), type=FullVmConfiguration)
            await self._api.apply(document)
        except (OSError, msgspec.DecodeError) as error:
            raise Invalid(f"cannot use {path}: {error}", hint="docs/engine.md names the keys") from error
        await self._api.start()

    async def _wait(self, stop: asyncio.Event) -> None:
        """Until QEMU ends or we shall; metrics are written meanwhile."""
        from banger.qemu.metrics import PERIOD_S

        waits = [asyncio.create_task(event.wait()) for event in (stop, self._vmm.ended)]
        try:
            while True:
                period = PERIOD_S if self._metrics.configured else None
                done, _ = await asyncio.wait(waits, timeout=period, return_when=asyncio.FIRST_COMPLETED)
                if done:
                    return
                await self._flush()
        finally:
            for wait in waits:
                wait.cancel()

    async def _last_turn(self) -> None:
        """A request under way comes to its end, as a machine half started cannot be ended well; no other begins."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LAST_REQUEST_S):
                await self._server.turn.acquire()

    async def _flush(self) -> None:
        with contextlib.suppress(BangerError):
            await self._api.flush_metrics()

    def _note_start(self) -> None:
        if self._arguments.start_time_us is not None:
            took = time.time_ns() // 1000 - self._arguments.start_time_us
            self._metrics.gauge("api_server", "process_startup_time_us", took)
        before = self._arguments.start_time_cpu_us or 0, self._arguments.parent_cpu_time_us or 0
        used = time.process_time_ns() // 1000 - before[0] + before[1]
        self._metrics.gauge("api_server", "process_startup_time_cpu_us", used)


def _listen(path: Path) -> socket.socket:
    """Bind and, with nothing between that could take time, listen: whoever sees the file can connect. Mode 0600."""
    if len(os.fsencode(path)) > SOCKET_PATH_MAX:
        raise Invalid(f"the socket's path is longer than {SOCKET_PATH_MAX} bytes: {path}", hint="choose a shorter one")
    if path.exists() or path.is_symlink():
        raise Conflict(f"{path} exists already", hint="another VM may use it; if none does, remove it")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        os.fchmod(listener.fileno(), 0o600)  # Linux gives the file the mode of the socket's inode
        listener.bind(str(path))
        listener.listen()
    except OSError as error:
        listener.close()
        raise HostRequirement(f"cannot listen on {path}: {error.strerror}") from error
    return listener
