"""banger-vmm: the Firecracker API on a Unix socket, QEMU underneath.

The guest's serial console is our standard output, our log standard error. One process is one VM: it ends when
QEMU ends, and QEMU ends when it does.
"""

import argparse
import asyncio
import json
import logging
import os
import re
import resource
import signal
import sys
from pathlib import Path

from banger import __version__
from banger.model.errors import BangerError, Conflict, HostRequirement, Invalid
from banger.paths import SOCKET_PATH_MAX, default_paths
from banger.qemu.accel import prove

log = logging.getLogger("banger-vmm")
_ID = re.compile(r"[A-Za-z0-9-]{1,64}")


def main() -> int:
    """The executable. Exit status: 0 after a guest that powered off or a polite end, 1 otherwise, 2 for bad usage."""
    arguments = _parse()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    # the library logs what we handle ourselves
    logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL)
    try:
        cache = arguments.accelerator_cache or default_paths().accelerators
        if arguments.probe_accelerator:
            print(json.dumps(asyncio.run(prove(cache))))
            return 0
        return asyncio.run(_serve(arguments.api_sock, arguments.id, cache))
    except BangerError as error:
        print(f"error: {error.message}", file=sys.stderr)
        if error.hint:
            print(f"hint:  {error.hint}", file=sys.stderr)
        return error.exit_code


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="banger-vmm", description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--api-sock", type=Path, metavar="PATH", help="the API's socket")
    parser.add_argument("--id", default="anonymous-instance", metavar="ID", help="the VM's id")
    parser.add_argument("--version", action="version", version=f"banger-vmm {__version__}")
    parser.add_argument(
        "--probe-accelerator", action="store_true", help="prove which accelerator works, print it as JSON, and exit"
    )
    parser.add_argument("--accelerator-cache", type=Path, metavar="FILE", help="where the proof's outcome is kept")
    arguments = parser.parse_args()
    if not arguments.probe_accelerator and arguments.api_sock is None:
        parser.error("--api-sock is required")
    if not _ID.fullmatch(arguments.id):
        parser.error("--id takes letters, digits and '-', at most 64")
    return arguments


def _check_socket(path: Path) -> None:
    if len(os.fsencode(path)) > SOCKET_PATH_MAX:
        raise Invalid(f"the socket's path is longer than {SOCKET_PATH_MAX} bytes: {path}", hint="choose a shorter one")
    if path.exists() or path.is_symlink():
        raise Conflict(f"{path} exists already", hint="another VM may use it; if none does, remove it")


async def _serve(path: Path, vm_id: str, cache: Path) -> int:
    from banger.qemu.api import Api
    from banger.qemu.server import Server
    from banger.qemu.vmm import Vmm

    _check_socket(path)
    # each vsock connection takes a descriptor
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    vmm = Vmm(vm_id, cache, sys.stdout.fileno())
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    mask = os.umask(0o177)
    try:
        server = await asyncio.start_unix_server(Server(Api(vm_id, vmm).handle).connection, path)
    except OSError as error:
        raise HostRequirement(f"cannot listen on {path}: {error.strerror}") from error
    finally:
        os.umask(mask)
    log.info("banger-vmm %s serves %s", __version__, path)
    waits = [asyncio.create_task(event.wait()) for event in (stop, vmm.ended)]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
        server.close()
        path.unlink(missing_ok=True)
        await vmm.stop()
    return vmm.status


if __name__ == "__main__":
    sys.exit(main())
