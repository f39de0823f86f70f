"""POST /exec from request to last frame."""

from _socket import socket

from banger.guest import protocol
from banger.guest.agent import http1
from banger.guest.agent.command import parse
from banger.guest.agent.jsonlite import encode
from banger.guest.agent.relay import HostGone, Relay
from banger.guest.agent.spawn import SpawnError, start

LINGER_SECONDS = 60.0  # for the host to read the rest and close


def execute(sock: socket, request: http1.Request) -> None:
    """Answer 101, run the command, end with an EXIT frame. Raises `Refused` before the 101, OSError."""
    command = parse(request.body)
    http1.switch_protocols(sock, protocol.EXEC_UPGRADE)
    try:
        child = start(command)
    except SpawnError as error:
        _exit(sock, {"error": error.text, "errno": error.errno})
        return
    except OSError as error:
        _exit(sock, {"error": f"cannot start a process: {error.strerror}", "errno": error.errno or 0})
        return
    try:
        document = Relay(sock, child, request.rest, command.timeout_s).run()
    except HostGone:
        return
    _exit(sock, document)


def _exit(sock: socket, document: "dict[str, object]") -> None:
    sock.settimeout(None)  # the host may take its time over the output before it: a pager, a stopped terminal
    sock.sendall(protocol.encode(protocol.EXIT, encode(document).encode()))
    http1.finish(sock, LINGER_SECONDS)
