"""What GET /info reports: the machine as it is now, read from /proc, /sys and /etc."""

import os
import sys

from banger.guest.agent.addresses import addresses
from banger.guest.agent.health import boot_id, init_kind, read_text
from banger.guest.agent.rootfs import names_in
from banger.guest.protocol import AGENT_VERSION

_HOST_KEYS = 8
_HEX = frozenset("0123456789abcdef")


def report(root: str = "") -> "dict[str, object]":
    """The body of GET /info; `root` prefixes the paths below /etc and /run."""
    memory = _memory()
    return {
        "agent_version": AGENT_VERSION,
        "python": ".".join(map(str, sys.version_info[:3])),
        "hostname": os.uname().nodename,
        "kernel": os.uname().release,
        "init": init_kind(root),
        "os": os_release(root),
        "boot_id": boot_id(),
        "machine_id": machine_id(root),
        "uptime_s": float((read_text("/proc/uptime") or "0").split()[0]),
        "cpus": os.cpu_count() or 1,
        "memory_bytes": memory.get("MemTotal", 0),
        "memory_available_bytes": memory.get("MemAvailable", 0),
        "load": [round(value, 2) for value in os.getloadavg()],
        "addresses": addresses(),
        "ssh_host_keys": ssh_host_keys(root),
    }


def machine_id(root: str = "") -> str:
    """The 32 hexadecimal digits of machine-id(5); empty when there are none yet."""
    text = read_text(root + "/etc/machine-id")
    return text if len(text) == 32 and set(text) <= _HEX else ""


def ssh_host_keys(root: str = "") -> "list[str]":
    """The public host keys, each as `TYPE BASE64`."""
    folder = root + "/etc/ssh/"
    names = [name for name in names_in(folder) if name.startswith("ssh_host_") and name.endswith("_key.pub")]
    keys = [read_text(folder + name).split() for name in names[:_HOST_KEYS]]
    return [" ".join(words[:2]) for words in keys if len(words) >= 2]


def os_release(root: str = "") -> "dict[str, str]":
    """ID, NAME and VERSION_ID of os-release(5); VERSION_ID is empty where a distribution has no versions."""
    text = read_text(root + "/etc/os-release") or read_text(root + "/usr/lib/os-release")
    fields = {}
    for line in text.splitlines():
        name, equals, value = line.strip().partition("=")
        if equals:
            fields[name] = value.strip("\"'")[:200]
    return {"id": fields.get("ID", "linux"), "name": fields.get("NAME", ""), "version": fields.get("VERSION_ID", "")}


def _memory() -> "dict[str, int]":
    """MemTotal and the like of /proc/meminfo, in bytes."""
    found = {}
    for line in read_text("/proc/meminfo").splitlines():
        name, _, rest = line.partition(":")
        words = rest.split()
        if words and words[0].isdigit():
            found[name] = int(words[0]) * 1024
    return found
