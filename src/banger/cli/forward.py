"""banger vm forward, and what other commands need to forward a port until Ctrl-C."""

import argparse
import asyncio
import json
import re
import signal
import sys
from collections.abc import Callable, Sequence

from banger.cli.connect import client, name_and_words
from banger.client.api import Client
from banger.client.forward import Forwarder, Traffic
from banger.client.guest import check_running, connect_request
from banger.client.loopback import Forward
from banger.client.tunnel import Dialer
from banger.model.documents import VmDocument
from banger.model.errors import Invalid
from banger.model.sizes import show_size

TICK_S = 0.5
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_WILDCARDS = ("0.0.0.0", "::", "*")
_WORD = re.compile(r"(?:\[[^][]+\]|[^][:]+)")  # in brackets it may hold colons
_USAGE = "PORT is [LOCAL:][HOST:]GUEST, like 8080:80"


def run_forward(arguments: argparse.Namespace) -> int:
    name, words = name_and_words(arguments, arguments.ports)
    if not words:
        raise Invalid("no port was given", hint=_USAGE)
    forwards = [parse_forward(word) for word in words]
    connection = client()
    vm = connection.show_vm(name)

    def started(bound: Sequence[Forward]) -> None:
        for forward in bound:
            place = f"port {forward.port}" if forward.host == "localhost" else f"{forward.host}, port {forward.port}"
            print(f"{forward.local} -> {vm['name']} {place}", file=sys.stderr, flush=True)
        if arguments.json:
            print(json.dumps(document(vm, bound), indent=2), flush=True)

    traffic = forward_until_interrupt(connection, vm, forwards, started=started, quiet=arguments.quiet)
    if not arguments.quiet:
        print(f"forwarded {amount(traffic)}", file=sys.stderr)
    return 0


def document(vm: VmDocument, forwards: Sequence[Forward]) -> dict[str, object]:
    return {
        "vm": vm["name"],
        "forwards": [{"local": forward.local, "host": forward.host, "port": forward.port} for forward in forwards],
    }


def parse_forward(text: str) -> Forward:
    """`[LOCAL:][HOST:]GUEST`; an IPv6 HOST is in brackets. Raises `Invalid`, also for an address to listen on."""
    address, local, host, port = _parts(text)
    for listened in (address, host):
        # a wildcard in HOST's place is meant for us, too: as a host to connect to it makes no sense
        if listened in _WILDCARDS or (listened == address and listened not in _LOOPBACK):
            raise Invalid(
                f"{text!r} asks to listen on {listened}; forwards listen on this host's loopback only",
                hint=f"leave the address out: {local or port}:{port}",
            )
    number = _port(port, text, least=1)
    connect_request(host or "localhost", number)  # raises for a host that cannot be one
    return Forward(_port(local, text, least=0) if local else number, host or "localhost", number)


def _parts(text: str) -> tuple[str, str, str, str]:
    """Address to listen on, local port, host, port of the host. Only the address has a meaning when it is empty."""
    words = _WORD.findall(text) if re.fullmatch(f"{_WORD.pattern}(:{_WORD.pattern})*", text) else []
    match [(word.strip("[]"), word.isascii() and word.isdigit()) for word in words]:
        case [(port, True)]:
            return "localhost", "", "", port
        case [(local, True), (port, True)]:
            return "localhost", local, "", port
        case [(host, False), (port, True)]:
            return "localhost", "", host, port
        case [(local, True), (host, False), (port, True)]:
            return "localhost", local, host, port
        case [(address, False), (local, True), (port, True)]:
            return address, local, "", port
        case [(address, False), (local, True), (host, False), (port, True)]:
            return address, local, host, port
    raise Invalid(f"{text!r} is no forward", hint=_USAGE)


def _port(digits: str, text: str, *, least: int) -> int:
    if len(digits) > 5 or not least <= int(digits) <= 65535:
        raise Invalid(f"{digits} in {text!r} is no TCP port", hint=f"choose from {least} to 65535")
    return int(digits)


def forward_until_interrupt(
    connection: Client,
    vm: VmDocument,
    forwards: Sequence[Forward],
    *,
    started: Callable[[Sequence[Forward]], None],
    quiet: bool = False,
) -> Traffic:
    """Forward until SIGINT or SIGTERM, and return what went through; `started` hears of the bound ports.

    Raises `Conflict` when the VM does not run or a port is taken, `NotFound` when the VM is deleted meanwhile.
    """
    check_running(vm)
    return asyncio.run(_forward(connection, vm, forwards, started, LiveLine(quiet)))


async def _forward(
    connection: Client,
    vm: VmDocument,
    forwards: Sequence[Forward],
    started: Callable[[Sequence[Forward]], None],
    line: "LiveLine",
) -> Traffic:
    loop = asyncio.get_running_loop()
    interrupted = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, interrupted.set)
    async with Forwarder(Dialer(connection, vm).open, forwards, told=line.say) as forwarder:
        started(forwarder.forwards)
        running = asyncio.create_task(forwarder.run())
        stopping = asyncio.create_task(interrupted.wait())
        try:
            while not (running.done() or stopping.done()):
                line.show(forwarder.traffic)
                await asyncio.wait((running, stopping), timeout=TICK_S, return_when=asyncio.FIRST_COMPLETED)
        finally:
            line.clear()
            stopping.cancel()
            if not running.done():
                running.cancel()
        if running.done() and not running.cancelled():
            running.result()
        return forwarder.traffic


class LiveLine:
    """The traffic, on one line of a terminal that is written again and again; on anything else nothing."""

    def __init__(self, quiet: bool) -> None:
        self._terminal = sys.stderr.isatty() and not quiet
        self._shown = ""

    def show(self, traffic: Traffic) -> None:
        text = f"{traffic.open} open, {amount(traffic)}"
        if self._terminal and text != self._shown:
            self._shown = text
            print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)

    def clear(self) -> None:
        if self._terminal:
            self._shown = ""
            print("\r\033[K", end="", file=sys.stderr, flush=True)

    def say(self, text: str) -> None:
        self.clear()
        print(text, file=sys.stderr, flush=True)


def amount(traffic: Traffic) -> str:
    """`12 connections, 1.5 MiB up, 20 MiB down`, and how many failed."""
    failed = f", {traffic.failed} failed" if traffic.failed else ""
    connections = "1 connection" if traffic.total == 1 else f"{traffic.total} connections"
    return f"{connections}, {show_size(traffic.up)} up, {show_size(traffic.down)} down{failed}"
