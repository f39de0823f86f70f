"""The interfaces' addresses, asked of the kernel (rtnetlink(7)): no process, no module above `_socket`."""

import _socket
from struct import Struct

MAX_ADDRESSES = 64

_AF_NETLINK = 16  # <linux/socket.h>
_RTM_GETADDR, _RTM_NEWADDR, _NLMSG_ERROR, _NLMSG_DONE = 22, 20, 2, 3  # <linux/rtnetlink.h>, <linux/netlink.h>
_DUMP = 0x301  # NLM_F_REQUEST | NLM_F_ROOT | NLM_F_MATCH
_IFA_ADDRESS, _IFA_LOCAL = 1, 2  # <linux/if_addr.h>
_HEADER = Struct("=IHHII")
_ADDRESS = Struct("=BBBBI")
_ATTRIBUTE = Struct("=HH")
_SECONDS = 2.0


def addresses() -> "list[dict[str, object]]":
    """[{"interface", "address", "prefix"}] without the loopback's own; empty when the kernel does not say."""
    try:
        names = dict(_socket.if_nameindex())
        sock = _socket.socket(_AF_NETLINK, _socket.SOCK_RAW, 0)
    except OSError:
        return []
    found: list[dict[str, object]] = []
    try:
        sock.settimeout(_SECONDS)
        sock.send(_HEADER.pack(_HEADER.size + _ADDRESS.size, _RTM_GETADDR, _DUMP, 1, 0) + bytes(_ADDRESS.size))
        while len(found) < MAX_ADDRESSES and _take(sock.recv(65536), names, found):
            pass
    except OSError:
        pass  # what has come so far
    finally:
        sock.close()
    return found[:MAX_ADDRESSES]


def _take(data: bytes, names: "dict[int, str]", found: "list[dict[str, object]]") -> bool:
    """Add the addresses in one datagram; False after the last."""
    at = 0
    while at + _HEADER.size <= len(data):
        length, kind, _flags, _sequence, _port = _HEADER.unpack_from(data, at)
        if kind in (_NLMSG_DONE, _NLMSG_ERROR) or length < _HEADER.size:
            return False
        if kind == _RTM_NEWADDR:
            _add(data[at + _HEADER.size : at + length], names, found)
        at += (length + 3) & ~3
    return True


def _add(message: bytes, names: "dict[int, str]", found: "list[dict[str, object]]") -> None:
    family, prefix, _flags, _scope, index = _ADDRESS.unpack_from(message)
    values = {}
    at = _ADDRESS.size
    while at + _ATTRIBUTE.size <= len(message):
        length, kind = _ATTRIBUTE.unpack_from(message, at)
        if length < _ATTRIBUTE.size:
            break
        values[kind] = message[at + _ATTRIBUTE.size : at + length]
        at += (length + 3) & ~3
    # on a point-to-point link IFA_ADDRESS is the other end's
    raw = values.get(_IFA_LOCAL, values.get(_IFA_ADDRESS, b""))
    if family not in (_socket.AF_INET, _socket.AF_INET6) or len(raw) not in (4, 16):
        return
    address = _socket.inet_ntop(family, raw)
    if not address.startswith("127.") and address != "::1":
        found.append({"interface": names.get(index, ""), "address": address, "prefix": prefix})
