"""What GET /healthz reports, read from /proc and /sys without starting a process."""

import os
from time import monotonic

from banger.guest.protocol import AGENT_VERSION

_STARTED = monotonic()

# Service name as reported -> the names that distributions give it.
SERVICES = {"ssh": ("ssh", "sshd"), "opencode": ("opencode",)}

_UNIT_FOLDERS = ("/etc/systemd/system/", "/usr/lib/systemd/system/", "/lib/systemd/system/")


def read_text(path: str) -> str:
    """The first 4096 bytes of a file, stripped; empty when it cannot be read."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        return os.read(fd, 4096).decode("utf-8", "replace").strip()
    except OSError:
        return ""
    finally:
        os.close(fd)


def boot_id() -> str:
    """The kernel's identifier of this boot (random(4))."""
    return read_text("/proc/sys/kernel/random/boot_id")


def report() -> "dict[str, object]":
    """The body of GET /healthz."""
    return {
        "status": "ok",
        "boot_id": boot_id(),
        "uptime_s": float((read_text("/proc/uptime") or "0").split()[0]),
        "agent_version": AGENT_VERSION,
        "agent_uptime_s": round(monotonic() - _STARTED, 3),
        "hostname": os.uname().nodename,
        "services": {name: service_state(names) for name, names in SERVICES.items()},
    }


def init_kind(root: str = "") -> str:
    """`systemd`, `openrc`, `runit` or `other`: by the directory that each makes under /run when it starts."""
    for kind, folder in (("systemd", "/run/systemd/system"), ("openrc", "/run/openrc"), ("runit", "/run/runit")):
        if os.path.isdir(root + folder):
            return kind
    return "other"


def service_state(names: "tuple[str, ...]", root: str = "") -> str:
    """`running`, `stopped` or `absent`: the best state among the names. `root` prefixes every path."""
    look = {"systemd": _systemd, "openrc": _openrc}.get(init_kind(root), _runit)
    states = [look(root, name) for name in names]
    return next((state for state in ("running", "stopped") if state in states), "absent")


def _systemd(root: str, name: str) -> str:
    """A unit's control group holds processes exactly while it runs (cgroups(7))."""
    for tree in ("/sys/fs/cgroup", "/sys/fs/cgroup/systemd"):
        if read_text(root + tree + "/system.slice/" + name + ".service/cgroup.procs"):
            return "running"
    return _installed(root, [folder + name + ".service" for folder in _UNIT_FOLDERS])


def _openrc(root: str, name: str) -> str:
    if os.path.lexists(root + "/run/openrc/started/" + name):
        return "running"
    return _installed(root, ["/etc/init.d/" + name])


def _runit(root: str, name: str) -> str:
    """runsv(8) writes `run`, `down` or `finish` into supervise/stat."""
    if read_text(root + "/etc/sv/" + name + "/supervise/stat").startswith("run"):
        return "running"
    return _installed(root, ["/etc/sv/" + name])


def _installed(root: str, paths: "list[str]") -> str:
    return "stopped" if any(os.path.exists(root + path) for path in paths) else "absent"
