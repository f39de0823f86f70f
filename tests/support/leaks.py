"""What a run must not leave behind on the machine."""

import subprocess
from pathlib import Path

import psutil

OURS = ("banger", "qemu-system", "mmdebstrap", "mke2fs", "qemu-img")


def snapshot() -> dict[str, set[str]]:
    """Things of the kernel's that outlive a careless test: processes of ours, mounts, loop devices, links, namespaces."""
    return {
        "processes": {f"{p.pid} {' '.join(p.info['cmdline'])}" for p in _processes()},
        "mounts": {line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()},
        "loop devices": {str(p) for p in Path("/sys/block").glob("loop*/loop/backing_file")},
        "links": {p.name for p in Path("/sys/class/net").iterdir()},
        "network namespaces": set(_lines("ip", "netns", "list")),
        "temporary directories": {str(p) for p in Path("/tmp").glob("bh-*")},
    }


def _processes() -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        words = process.info["cmdline"] or []
        if process.info["status"] != psutil.STATUS_ZOMBIE and any(name in word for word in words[:3] for name in OURS):
            found.append(process)
    return found


def _lines(*command: str) -> list[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.splitlines()


def difference(before: dict[str, set[str]], after: dict[str, set[str]]) -> dict[str, set[str]]:
    """What is there now and was not there before, by kind."""
    return {kind: left for kind in before if (left := after[kind] - before[kind])}
