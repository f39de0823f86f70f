"""GET /ports: what listens in the guest, read from /proc/net (proc_net(5)), with the process behind each socket.

Which TCP ports speak HTTP is found out by asking them, in `probe`.
"""

import os
from _socket import AF_INET, AF_INET6, inet_ntop
from struct import pack

from banger.guest.agent.health import read_text
from banger.guest.agent.probe import speaks_http
from banger.guest.agent.rootfs import read_all

MAX_PORTS = 256
MAX_ADDRESSES = 16  # of one port
MAX_TABLE = 1024 * 1024  # bytes read of one table: the kernel lists what listens before what is connected

_TABLES = (("tcp", "tcp"), ("tcp6", "tcp"), ("udp", "udp"), ("udp6", "udp"))
_WAITING = {"tcp": "0A", "udp": "07"}  # TCP_LISTEN; TCP_CLOSE, which for UDP is "not connected"
_LOCAL = {"0.0.0.0": "127.0.0.1", "::": "::1"}
_SILENT = ("sshd", "dropbear")  # they speak first, but may take longer to start doing so than a probe waits


class Listener:
    """One listening socket: where, and the inode that tells whose it is."""

    __slots__ = ("address", "inode", "pid", "port", "process", "protocol")

    def __init__(self, protocol: str, address: str, port: int, inode: str) -> None:
        self.protocol = protocol
        self.address = address
        self.port = port
        self.inode = inode
        self.pid: int | None = None
        self.process = ""


def report() -> "dict[str, object]":
    """The body of GET /ports."""
    found = listeners()
    _name_processes(found)
    probed = [one for one in found if one.protocol == "tcp" and one.process not in _SILENT]
    http = speaks_http([(one.inode, _reach(one.address), one.port) for one in probed])
    groups: dict[tuple[int, str, int], list[Listener]] = {}
    for one in found:
        groups.setdefault((one.port, one.protocol, one.pid or 0), []).append(one)
    return {"ports": [_entry(groups[key], http) for key in sorted(groups)[:MAX_PORTS]]}


def listeners() -> "list[Listener]":
    """Listening TCP and bound, unconnected UDP sockets; at most `MAX_PORTS`."""
    found: list[Listener] = []
    for table, protocol in _TABLES:
        for line in read_all("/proc/net/" + table, MAX_TABLE).decode("ascii", "replace").splitlines()[1:]:
            one = parse(line, protocol)
            if one is not None and len(found) < MAX_PORTS:
                found.append(one)
    return found


def parse(line: str, protocol: str) -> "Listener | None":
    """The listener in one line of a table; None when it is something else."""
    words = line.split()
    if len(words) < 10 or words[3] != _WAITING[protocol]:
        return None
    address, _, port = words[1].partition(":")
    if not words[9].isdigit() or int(port, 16) == 0 or not words[2].endswith(":0000"):
        return None
    # each word of four bytes is printed as a number of the machine's own byte order
    raw = b"".join(pack("=I", int(address[at : at + 8], 16)) for at in range(0, len(address), 8))
    return Listener(protocol, inet_ntop(AF_INET if len(raw) == 4 else AF_INET6, raw), int(port, 16), words[9])


def _name_processes(found: "list[Listener]") -> None:
    """Find who holds each socket by one walk over /proc; of several the first, which is the oldest as a rule."""
    by_link = {"socket:[" + one.inode + "]": one for one in found}
    for pid in sorted(int(name) for name in os.listdir("/proc") if name.isdigit()):
        folder = f"/proc/{pid}/fd/"
        try:
            for fd in os.listdir(folder):
                one = by_link.get(_link(folder + fd))
                if one is not None and one.pid is None:
                    one.pid, one.process = pid, read_text(f"/proc/{pid}/comm")
        except OSError:
            continue  # it has ended, or is not ours to look into


def _link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""


def _reach(address: str) -> str:
    """An address to connect to what listens on `address`."""
    return _LOCAL.get(address, address)


def _entry(group: "list[Listener]", http: "set[str]") -> "dict[str, object]":
    first = group[0]
    hosts = [_reach(one.address) for one in group if one.inode in http]
    url = None
    if hosts:
        host = "localhost" if set(hosts) & set(_LOCAL.values()) else hosts[0]
        url = f"http://[{host}]:{first.port}/" if ":" in host else f"http://{host}:{first.port}/"
    return {
        "port": first.port,
        "protocol": first.protocol,
        "addresses": sorted({one.address for one in group})[:MAX_ADDRESSES],
        "pid": first.pid,
        "process": first.process,
        "url": url,
    }
