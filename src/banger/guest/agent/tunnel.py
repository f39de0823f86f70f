"""CONNECT host:port: a TCP connection as the guest sees it, spliced to the host's stream. One thread, one poll."""

import _socket
import os
from _socket import socket
from _thread import allocate_lock, start_new_thread
from errno import EINPROGRESS
from select import POLLOUT, POLLRDHUP, poll
from time import monotonic

from banger.guest.agent import http1
from banger.guest.agent.splice import splice

RETRY_SECONDS = 0.1
RESOLVE_SECONDS = 5.0
CONNECT_SECONDS = 8.0  # for what is not on this machine
MAX_WAIT = 3600.0
MAX_TARGETS = 8


def tunnel(sock: socket, request: http1.Request) -> None:
    """Answer 200 and carry bytes until both sides have ended. Raises `Refused` 400, 502 or 504 before the 200."""
    host, port = parse_target(request.path)
    wait_s = _wait(request.headers.get("banger-wait", "0"))
    peer = _reach(sock, host, port, wait_s)
    try:
        peer.setsockopt(_socket.IPPROTO_TCP, _socket.TCP_NODELAY, 1)
        http1.open_stream(sock)
        splice(sock, peer, request.rest)
    finally:
        peer.close()


def parse_target(target: str) -> "tuple[str, int]":
    """(host, port) of `host:port` or `[v6]:port`. Raises `Refused` 400."""
    host, colon, port = target.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise http1.Refused(400, "an IPv6 address is written in brackets")
    if not colon or not (port.isascii() and port.isdigit()) or not 0 < int(port[:9]) < 65536:
        raise http1.Refused(400, "CONNECT takes HOST:PORT with a port from 1 to 65535")
    if not 0 < len(host) <= 255 or not host.isascii() or not host.isprintable():
        raise http1.Refused(400, "the host is empty or not a name of at most 255 characters")
    return host, int(port)


def _wait(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= MAX_WAIT:
        raise http1.Refused(400, f"Banger-Wait is a number of seconds from 0 to {MAX_WAIT:g}")
    return seconds


def _reach(sock: socket, host: str, port: int, wait_s: float) -> socket:
    """A connected TCP socket; tried again until one is there or `wait_s` have passed."""
    start = monotonic()
    targets = _resolve(host, port)
    while True:
        reason = ""
        for family, address in targets:
            left = max(start + wait_s, start + CONNECT_SECONDS) - monotonic()
            found, reason = _connect(family, address, min(left, CONNECT_SECONDS))
            if found is not None:
                return found
        name = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        left = start + wait_s - monotonic()
        if left <= 0 and wait_s:
            raise http1.Refused(504, f"nothing listened on {name} within {wait_s:g} s: {reason}")
        if left <= 0:
            raise http1.Refused(502, f"cannot connect to {name}: {reason}")
        _pause(sock, min(left, RETRY_SECONDS))


def _pause(sock: socket, seconds: float) -> None:
    """Wait, unless the host leaves meanwhile: that raises OSError."""
    poller = poll()
    poller.register(sock, POLLRDHUP)
    if poller.poll(seconds * 1000):
        raise ConnectionError("the host has left")


def _connect(family: int, address: "tuple[object, ...]", seconds: float) -> "tuple[socket | None, str]":
    """(socket, "") or (None, reason)."""
    sock = socket(family, _socket.SOCK_STREAM)
    sock.setblocking(False)
    errno = sock.connect_ex(address)
    if errno == EINPROGRESS:
        poller = poll()
        poller.register(sock, POLLOUT)
        if poller.poll(max(0.0, seconds) * 1000):
            errno = sock.getsockopt(_socket.SOL_SOCKET, _socket.SO_ERROR)
    if errno == 0:
        return sock, ""
    sock.close()
    return None, "it does not answer" if errno == EINPROGRESS else os.strerror(errno)


def _resolve(host: str, port: int) -> "list[tuple[int, tuple[object, ...]]]":
    """Addresses of a name. In a thread, for the resolver keeps its own time and cannot be stopped."""
    done = allocate_lock()
    done.acquire()
    found: list[tuple[int, tuple[object, ...]]] = []
    reasons: list[str] = []

    def work() -> None:
        try:
            # as bytes: of text Python would make IDNA, for which it loads the whole of Unicode
            for entry in _socket.getaddrinfo(host.encode("ascii"), port, 0, _socket.SOCK_STREAM):
                found.append((entry[0], entry[4]))
        except OSError as error:
            reasons.append(str(error.strerror or error))
        finally:
            done.release()

    start_new_thread(work, ())
    if not done.acquire(timeout=RESOLVE_SECONDS):
        raise http1.Refused(502, f"{host} was not found within {RESOLVE_SECONDS:g} s")
    if not found:
        raise http1.Refused(502, f"{host} was not found: {reasons[0] if reasons else 'it has no address'}")
    return found[:MAX_TARGETS]
