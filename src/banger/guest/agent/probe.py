"""Finds out which TCP listeners speak HTTP, by one HEAD request to each, all at once and within half a second.

A service notices a probe, so each socket is asked once in its life; one that keeps silent, as a busy one may, is
asked `MAX_TRIES` times. What speaks first, as SSH and SMTP do, is not HTTP and gets no request.
"""

from _socket import AF_INET, AF_INET6, SO_ERROR, SOCK_STREAM, SOL_SOCKET, socket
from _thread import allocate_lock
from select import POLLERR, POLLHUP, POLLIN, POLLOUT, poll
from time import monotonic

LISTEN_SECONDS = 0.15  # for a server that speaks first to do so
TOTAL_SECONDS = 0.5
MAX_TRIES = 3

_REQUEST = b"HEAD / HTTP/1.1\r\nHost: localhost\r\nUser-Agent: banger-agent\r\nConnection: close\r\n\r\n"
_BROKEN = POLLERR | POLLHUP

_lock = allocate_lock()
_known: "dict[str, bool]" = {}  # inode of the listening socket -> whether it speaks HTTP
_tries: "dict[str, int]" = {}


class _Probe:
    """One connection to a listener."""

    __slots__ = ("asked", "inode", "sock")

    def __init__(self, inode: str, sock: socket) -> None:
        self.inode = inode
        self.sock = sock
        self.asked = False


def speaks_http(targets: "list[tuple[str, str, int]]") -> "set[str]":
    """Of (inode, address, port) the inodes that answered in HTTP, now or earlier."""
    with _lock:  # two at once would ask everybody twice
        current = {inode for inode, _address, _port in targets}
        for memory in (_known, _tries):
            for inode in set(memory) - current:
                del memory[inode]
        probes = [_connect(*target) for target in targets if target[0] not in _known]
        _run({one.sock.fileno(): one for one in probes if one is not None})
        return {inode for inode in current if _known.get(inode)}


def _connect(inode: str, address: str, port: int) -> "_Probe | None":
    _tries[inode] = _tries.get(inode, 0) + 1
    if _tries[inode] > MAX_TRIES:
        _known[inode] = False
        return None
    sock = socket(AF_INET6 if ":" in address else AF_INET, SOCK_STREAM)
    sock.setblocking(False)
    try:
        sock.connect((address, port))
    except BlockingIOError:
        pass  # under way
    except OSError:  # a link-local address without its interface, or a filter
        sock.close()
        _known[inode] = False
        return None
    return _Probe(inode, sock)


def _run(probes: "dict[int, _Probe]") -> None:
    """Carry the probes to their ends. What is not known after it has kept silent."""
    start = monotonic()
    poller = poll()
    for fd in probes:
        poller.register(fd, POLLIN)
    try:
        while probes and (left := start + TOTAL_SECONDS - monotonic()) > 0:
            quiet = start + LISTEN_SECONDS - monotonic()
            if quiet <= 0:
                for one in probes.values():
                    poller.modify(one.sock, POLLIN if one.asked else POLLIN | POLLOUT)
            for fd, events in poller.poll(1000 * (quiet if quiet > 0 else left) + 1):
                if _turn(probes[fd], events, poller):
                    poller.unregister(fd)
                    probes.pop(fd).sock.close()
    finally:
        for one in probes.values():
            one.sock.close()


def _turn(one: _Probe, events: int, poller: poll) -> bool:
    """Read or ask; True when the verdict is there."""
    try:
        if events & (POLLIN | _BROKEN):
            answer = one.sock.recv(16)
            _known[one.inode] = one.asked and answer.startswith(b"HTTP/")
            return True
        if one.sock.getsockopt(SOL_SOCKET, SO_ERROR) == 0:
            one.sock.send(_REQUEST)
            one.asked = True
        return False
    except BlockingIOError:
        return False
    except OSError:
        _known[one.inode] = False
        return True
