"""banger vm opencode: the guest's opencode server at an address of this host."""

import argparse
import asyncio
import os
import shutil
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager

from banger.cli.connect import client, required_name
from banger.cli.forward import forward_until_interrupt
from banger.cli.render import facts, print_json
from banger.client.api import Client
from banger.client.forward import Forwarder
from banger.client.guest import check_running
from banger.client.loopback import Forward
from banger.client.tunnel import Dialer
from banger.model.documents import VmDocument
from banger.model.errors import BangerError, HostRequirement, Invalid
from banger.model.vm import OpencodeAccess

START_S = 10.0


def run_opencode(arguments: argparse.Namespace) -> int:
    """Print URL and credentials and forward until Ctrl-C; or run the local client meanwhile."""
    if not 0 <= arguments.port <= 65535:
        raise Invalid(f"{arguments.port} is no TCP port", hint="choose from 0 to 65535; 0 takes a free one")
    connection = client()
    name = required_name(arguments)
    access = connection.vm_opencode(name)
    if arguments.print_only:
        _show({"port": str(access.port), **_credentials(access)}, as_json=arguments.json)
        return 0
    vm = connection.show_vm(name)
    forward = Forward(arguments.port, "localhost", access.port)
    if arguments.attach:
        return _attach(connection, vm, forward, access)

    def started(bound: Sequence[Forward]) -> None:
        _show({"url": _url(bound[0]), **_credentials(access)}, as_json=arguments.json)
        print("forwarding until Ctrl-C", file=sys.stderr)

    forward_until_interrupt(connection, vm, [forward], started=started)
    return 0


def _url(forward: Forward) -> str:
    return f"http://{forward.local}"


def _credentials(access: OpencodeAccess) -> dict[str, str]:
    return {"username": access.username, "password": access.password}


def _show(document: dict[str, str], *, as_json: bool) -> None:
    print_json(document) if as_json else facts(document.items())
    sys.stdout.flush()


def _attach(connection: Client, vm: VmDocument, forward: Forward, access: OpencodeAccess) -> int:
    """The local client in the foreground, the forward in a thread behind it. The password goes by the environment."""
    from banger.system.process import run_foreground

    if shutil.which("opencode") is None:
        raise HostRequirement(
            "no opencode client is installed on this host",
            hint=f"without --attach you get a URL for any client; or `banger vm exec -it {vm['name']} -- opencode`",
        )
    check_running(vm)
    environment = {
        **os.environ,
        "OPENCODE_SERVER_USERNAME": access.username,
        "OPENCODE_SERVER_PASSWORD": access.password,
    }
    with _behind(connection, vm, forward) as bound:
        return run_foreground(["opencode", "attach", _url(bound)], package="opencode", env=environment)


@contextmanager
def _behind(connection: Client, vm: VmDocument, forward: Forward) -> Iterator[Forward]:
    """The forward as it was bound, served by a thread until the end of the block."""
    started: Future[tuple[Forward, asyncio.AbstractEventLoop, asyncio.Event]] = Future()

    async def serve() -> None:
        ended = asyncio.Event()
        async with Forwarder(Dialer(connection, vm).open, [forward]) as forwarder:
            started.set_result((forwarder.forwards[0], asyncio.get_running_loop(), ended))
            await ended.wait()

    def work() -> None:
        try:
            asyncio.run(serve())
        except BangerError as error:
            started.set_exception(error)  # binding failed: later errors cost one connection each

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    bound, loop, ended = started.result(START_S)
    try:
        yield bound
    finally:
        loop.call_soon_threadsafe(ended.set)
        thread.join(START_S)
