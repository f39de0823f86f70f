"""What GET /services reports: the services that shall run, by what init leaves in /run, /sys and /etc.

systemd: units that something in /etc/systemd/system wants, and whatever runs; without oneshot units, of which
nothing stays. OpenRC: the services of all runlevels, and whatever runs. runit: the enabled service directories.
"""

import os

from banger.guest.agent.health import init_kind, read_text
from banger.guest.agent.rootfs import names_in

MAX_SERVICES = 256

_SUFFIX = ".service"
_UNIT_FOLDERS = ("/etc/systemd/system/", "/run/systemd/system/", "/usr/lib/systemd/system/", "/lib/systemd/system/")
_GROUPS = ("/sys/fs/cgroup/system.slice/", "/sys/fs/cgroup/systemd/system.slice/")
_RUNIT_ENABLED = ("/var/service/", "/etc/service/", "/service/")


def report(root: str = "") -> "dict[str, object]":
    """The body of GET /services; `root` prefixes every path."""
    kind = init_kind(root)
    states = {"systemd": _systemd, "openrc": _openrc, "runit": _runit, "other": _none}[kind](root)
    listed = [{"name": name, "state": states[name]} for name in sorted(states) if len(name) <= 200]
    return {"init": kind, "services": listed[:MAX_SERVICES]}


def _none(root: str) -> "dict[str, str]":
    return {}


def _systemd(root: str) -> "dict[str, str]":
    states = {}
    for folder in names_in(root + "/etc/systemd/system"):
        if folder.endswith((".wants", ".requires")):
            for unit in names_in(root + "/etc/systemd/system/" + folder):
                if unit.endswith(_SUFFIX) and _stays(root, unit):
                    states[unit[: -len(_SUFFIX)]] = "stopped"
    for group in _GROUPS:
        for unit in names_in(root + group):
            # a unit's control group holds processes exactly while it runs (cgroups(7))
            if unit.endswith(_SUFFIX) and read_text(root + group + unit + "/cgroup.procs"):
                states[unit[: -len(_SUFFIX)].replace("\\x2d", "-")] = "running"
    return states


def _stays(root: str, unit: str) -> bool:
    """Whether a unit is there, is not masked, and is of a kind that keeps a process."""
    stem, at, _instance = unit.partition("@")
    names = (unit, stem + "@" + _SUFFIX) if at else (unit,)  # an instance may be masked by itself
    paths = [root + folder + name for name in names for folder in _UNIT_FOLDERS]
    found = next((path for path in paths if os.path.lexists(path)), "")
    text = read_text(found)
    return bool(text) and "\nType=oneshot" not in text


def _openrc(root: str) -> "dict[str, str]":
    base = root + "/run/openrc/"
    levels = root + "/etc/runlevels/"
    states = {name: "stopped" for level in names_in(levels) for name in names_in(levels + level)}
    for folder, state in (("started", "running"), ("failed", "failed")):
        states.update((name, state) for name in names_in(base + folder))
    return states


def _runit(root: str) -> "dict[str, str]":
    states = {}
    for enabled in _RUNIT_ENABLED:
        for name in names_in(root + enabled):
            # runsv(8) writes `run`, `down` or `finish` there
            text = read_text(root + enabled + name + "/supervise/stat")
            states[name] = "running" if text.startswith("run") else "stopped"
    return states
