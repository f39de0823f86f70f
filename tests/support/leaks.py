"""What a run must not leave behind on the machine."""

import contextlib
import os
import secrets
import subprocess
from pathlib import Path

import psutil

# every process that a test starts inherits it, however deep
MARK = "BANGER_TEST_RUN"


def mark_this_run() -> None:
    """From here on, what this process starts can be told from what others do on the machine."""
    os.environ[MARK] = secrets.token_hex(8)


def prefix() -> str:
    """How this run's temporary directories begin; short, for the sake of socket paths."""
    return f"bh{os.environ[MARK][:4]}-"


def snapshot() -> dict[str, set[str]]:
    """Things that outlive a careless test: processes of ours, mounts, loop devices, links, namespaces."""
    return {
        "processes": {f"{p.pid} {' '.join(p.info['cmdline'])}" for p in _processes()},
        "mounts": {line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()},
        "loop devices": {str(p) for p in Path("/sys/block").glob("loop*/loop/backing_file")},
        "links": {p.name for p in Path("/sys/class/net").iterdir()},
        "network namespaces": set(_lines("ip", "netns", "list")),
        "temporary directories": {str(p) for p in Path("/tmp").glob(f"{prefix()}*")},
    }


def _processes() -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        if process.pid != os.getpid() and process.info["status"] != psutil.STATUS_ZOMBIE:
            with contextlib.suppress(psutil.Error):
                if process.environ().get(MARK) == os.environ[MARK]:
                    found.append(process)
    return found


def _lines(*command: str) -> list[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.splitlines()


def difference(before: dict[str, set[str]], after: dict[str, set[str]]) -> dict[str, set[str]]:
    """What is there now and was not there before, by kind."""
    return {kind: left for kind in before if (left := after[kind] - before[kind])}
