"""Listeners on this host's loopback, and nowhere else: what is forwarded belongs to the person at this machine."""

import contextlib
import errno
import socket
from dataclasses import dataclass, replace

from banger.model.errors import BangerError, Conflict, HostRequirement

_BACKLOG = 128
_FREE_PORT_TRIES = 20


@dataclass(frozen=True)
class Forward:
    """Local port `local_port` (0: a free one) leads to `port` of `host`, a host as the guest sees it."""

    local_port: int
    host: str
    port: int

    @property
    def local(self) -> str:
        return f"127.0.0.1:{self.local_port}"


def listen(forward: Forward) -> tuple[Forward, list[socket.socket]]:
    """Listeners on 127.0.0.1 and, where the host has it, ::1; a local port of 0 becomes a number.

    Raises `Conflict` when another program has the port, `HostRequirement`.
    """
    for last in (False,) * (_FREE_PORT_TRIES - 1) + (True,):
        listeners: list[socket.socket] = []
        port = forward.local_port
        try:
            for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
                if (listener := _bind(family, address, port)) is not None:
                    listeners.append(listener)
                    port = listener.getsockname()[1]
            return replace(forward, local_port=port), listeners
        except OSError as error:
            for listener in listeners:
                listener.close()
            if forward.local_port or last or error.errno != errno.EADDRINUSE:
                raise _cannot_bind(forward.local_port, error) from error
    raise AssertionError("the last try returns or raises")


def _bind(family: int, address: str, port: int) -> socket.socket | None:
    """None when the host has no IPv6."""
    try:
        listener = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    except OSError:
        if family == socket.AF_INET6:
            return None
        raise
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address, port))
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        if family == socket.AF_INET6 and error.errno == errno.EADDRNOTAVAIL:
            return None
        raise
    return listener


def _cannot_bind(port: int, error: OSError) -> BangerError:
    if error.errno == errno.EADDRINUSE:
        return Conflict(f"local port {port} is taken{_owner(port)}", hint="choose another: LOCAL:GUEST, or 0:GUEST")
    if error.errno == errno.EACCES:
        return HostRequirement(
            f"local port {port} needs a privilege that you do not have",
            hint="choose one from 1024 on, like 8080:80",
        )
    return HostRequirement(f"cannot listen on local port {port}: {error.strerror}")


def _owner(port: int) -> str:
    """` by NAME (pid N)` of the process that listens on a port, if we may know."""
    import psutil

    with contextlib.suppress(psutil.Error, OSError):
        for found in psutil.net_connections("tcp"):
            if found.status == psutil.CONN_LISTEN and found.pid and found.laddr and found.laddr.port == port:
                return f" by {psutil.Process(found.pid).name()} (pid {found.pid})"
    return ""
