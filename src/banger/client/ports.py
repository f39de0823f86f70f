"""What listens in a guest, as its agent tells it: checked, bounded, harmless to show."""

from typing import Any, TypedDict

from banger.client.guest import get_document, unreachable
from banger.model.documents import VmDocument
from banger.model.text import harmless

_PORTS_MAX = 4096
_ADDRESSES_MAX = 16


class PortDocument(TypedDict):
    """A listening port. `pid` is null and `process` empty where it is not known, `url` null where no HTTP answers."""

    port: int
    protocol: str
    addresses: list[str]
    pid: int | None
    process: str
    url: str | None


def listening_ports(vm: VmDocument) -> list[PortDocument]:
    """In the order of their numbers. Raises as `guest.get_document`."""
    told = get_document(vm, "/ports").get("ports")
    if not isinstance(told, list):
        raise unreachable(vm, "its agent's list of ports makes no sense")
    try:
        ports = [_checked(port) for port in told[:_PORTS_MAX]]
    except (KeyError, TypeError, ValueError) as error:
        raise unreachable(vm, "its agent's list of ports makes no sense") from error
    return sorted(ports, key=lambda port: (port["port"], port["protocol"]))


def _checked(told: dict[str, Any]) -> PortDocument:
    """Raises KeyError, TypeError or ValueError for what is no port."""
    port, protocol, pid, url = told["port"], told["protocol"], told["pid"], told["url"]
    if type(port) is not int or not 0 < port < 65536 or protocol not in ("tcp", "udp"):
        raise ValueError(port)
    if pid is not None and (type(pid) is not int or not 0 < pid < 1 << 32):
        raise ValueError(pid)
    return {
        "port": port,
        "protocol": protocol,
        "addresses": [harmless(str(address)) for address in list(told["addresses"])[:_ADDRESSES_MAX]],
        "pid": pid,
        "process": harmless(str(told["process"])),
        "url": None if url is None else harmless(str(url)),
    }
