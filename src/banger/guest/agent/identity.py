"""GET and POST /identity: who this machine is, and becoming another one after a snapshot was restored.

Everything in a request is checked before anything is changed. Each part is one step; a step that fails is
reported by its name, with the steps before it done.
"""

import os
from time import time

from banger.guest.agent.addresses import addresses
from banger.guest.agent.health import boot_id
from banger.guest.agent.http1 import Refused, Request, document
from banger.guest.agent.info import machine_id, ssh_host_keys
from banger.guest.agent.programs import ProgramFailed

MAX_ENTROPY = 512  # bytes
_FIELDS = frozenset({"hostname", "network", "clock_s", "entropy", "machine_id", "host_keys"})
_HEX = frozenset("0123456789abcdef")
_LABEL = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-")


class Network:
    """A checked network: address with prefix, gateway or None, DNS servers or None to leave them."""

    __slots__ = ("address", "dns", "gateway")

    def __init__(self, address: str, gateway: "str | None", dns: "list[str] | None") -> None:
        self.address = address
        self.gateway = gateway
        self.dns = dns


class Change:
    """A checked request; None leaves a part alone."""

    __slots__ = ("clock_s", "entropy", "hostname", "machine_id", "network", "new_host_keys")

    def __init__(self, given: "dict[str, object]") -> None:
        self.hostname = _hostname(given["hostname"]) if "hostname" in given else None
        self.network = _network(given["network"]) if "network" in given else None
        self.clock_s = _clock(given["clock_s"]) if "clock_s" in given else None
        self.entropy = _entropy(given["entropy"]) if "entropy" in given else None
        self.machine_id = _machine_id(given["machine_id"]) if "machine_id" in given else None
        self.new_host_keys = "host_keys" in given
        if self.new_host_keys and given["host_keys"] != "new":
            raise Refused(400, 'host_keys is "new"')


def report(root: str = "") -> "dict[str, object]":
    """The body of GET /identity, and of POST after it."""
    return {
        "hostname": os.uname().nodename,
        "machine_id": machine_id(root),
        "boot_id": boot_id(),
        "clock_s": time(),
        "addresses": addresses(),
        "ssh_host_keys": ssh_host_keys(root),
    }


def change(request: Request, root: str = "") -> None:
    """Do what a POST asks. Raises `Refused`: 400 with nothing done, or 500 with the step that failed."""
    wanted = Change(document(request.body, _FIELDS))
    from banger.guest.agent import become

    # Random numbers come before the keys that are made of them, the clock before whatever notes the time.
    steps: tuple[tuple[str, object, object], ...] = (
        ("clock_s", wanted.clock_s, become.set_clock),
        ("entropy", wanted.entropy, become.add_entropy),
        ("machine_id", wanted.machine_id, become.set_machine_id),
        ("hostname", wanted.hostname, become.set_hostname),
        ("network", wanted.network, become.set_network),
        ("host_keys", wanted.new_host_keys or None, become.make_host_keys),
    )
    for name, value, step in steps:
        if value is None:
            continue
        try:
            step(value, root)  # type: ignore[operator]
        except OSError as error:
            raise Refused(500, f"{name}: {error.strerror or error}") from None
        except ProgramFailed as error:
            raise Refused(500, f"{name}: {error}") from None


def _hostname(value: object) -> str:
    """A label as in RFC 1123, which is what banger-setup takes."""
    fine = isinstance(value, str) and 0 < len(value) <= 63 and set(value) <= _LABEL
    if not isinstance(value, str) or not fine or value.startswith("-") or value.endswith("-"):
        raise Refused(400, "hostname is 1 to 63 letters, digits and inner hyphens")
    return value


def _network(value: object) -> Network:
    if not isinstance(value, dict) or not set(value) <= {"address", "gateway", "dns"}:
        raise Refused(400, "network is an object with address, gateway and dns")
    address, slash, prefix = str(value.get("address")).partition("/")
    # int() takes only what is in this list: no signs, no spaces, no leading zero
    if not is_ipv4(address) or not slash or prefix not in [str(bits) for bits in range(1, 33)]:
        raise Refused(400, "network.address is A.B.C.D/LENGTH")
    gateway = value.get("gateway")
    if gateway is not None and not is_ipv4(gateway):
        raise Refused(400, "network.gateway is A.B.C.D or null")
    dns = value.get("dns")
    if dns is not None and (not isinstance(dns, list) or len(dns) > 3 or not all(map(is_ipv4, dns))):
        raise Refused(400, "network.dns is a list of at most 3 addresses A.B.C.D")
    return Network(f"{address}/{prefix}", gateway, dns)


def is_ipv4(value: object) -> bool:
    """Whether it is four numbers from 0 to 255 without leading zeros."""
    from _socket import AF_INET, inet_pton

    try:
        inet_pton(AF_INET, value)  # type: ignore[arg-type]
    except (OSError, TypeError, ValueError):
        return False
    return True


def _clock(value: object) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value < 1e10:
        raise Refused(400, "clock_s is a number of seconds since 1970")
    return float(value)


def _entropy(value: object) -> bytes:
    from binascii import Error, a2b_base64, b2a_base64

    try:
        data = a2b_base64(value) if isinstance(value, str) else b""
        exact = b2a_base64(data, newline=False) == value.encode("ascii") if isinstance(value, str) else False
    except (Error, ValueError):
        exact = False
    if not exact or not 0 < len(data) <= MAX_ENTROPY:
        raise Refused(400, f"entropy is base64 of 1 to {MAX_ENTROPY} bytes")
    return data


def _machine_id(value: object) -> str:
    if not isinstance(value, str) or len(value) != 32 or not set(value) <= _HEX or set(value) == {"0"}:
        raise Refused(400, "machine_id is 32 hexadecimal digits in lower case, not all zero")
    return value
