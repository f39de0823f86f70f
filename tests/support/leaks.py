"""What a run must not leave behind on the machine, told from what other runs beside it have there."""

import contextlib
import os
import re
import secrets
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path

import psutil

# every process that a test starts inherits it, however deep
MARK = "BANGER_TEST_RUN"
# Below these names lies what tests make, each run with a number of its own: `prefix()`, and pytest's own directories.
_A_RUNS = re.compile(r"bh[0-9a-f]{4}-|pytest-of-[^/]+/pytest-\d+/")


def mark_this_run() -> None:
    """From here on, what this process starts can be told from what others do on the machine."""
    os.environ[MARK] = secrets.token_hex(8)


def prefix() -> str:
    """How this run's temporary directories and namespaces begin; short, for the sake of socket paths."""
    return f"bh{os.environ[MARK][:4]}-"


def snapshot(base: Path) -> dict[str, set[str]]:
    """Things that outlive a careless test: processes of ours, mounts, loop devices, links, namespaces.

    `base` is where this run's pytest puts temporary directories. What bears another run's name is left out; all else
    is taken for ours, wherever it is.
    """
    temporary = Path(tempfile.gettempdir())
    own = (str(temporary / prefix()), f"{base}/", f"/run/netns/{prefix()}", prefix())
    return {
        "processes": {f"{p.pid} {' '.join(p.info['cmdline'])}" for p in _processes()},
        "mounts": _not_of_others(_mounts(), own),
        "loop devices": _not_of_others(_loop_devices(), own),
        "links": {p.name for p in Path("/sys/class/net").iterdir()},
        "network namespaces": _not_of_others((line.split()[0] for line in _lines("ip", "netns", "list")), own),
        "temporary directories": {str(p) for p in temporary.glob(f"{prefix()}*")},
    }


def _not_of_others(names: Iterable[str], own: tuple[str, ...]) -> set[str]:
    """The names without those that another run's mark is in."""
    places = (f"{tempfile.gettempdir()}/", "/run/netns/", "")
    return {
        name
        for name in names
        if name.startswith(own) or not any(_A_RUNS.match(name.removeprefix(place)) for place in places)
    }


def _mounts() -> Iterable[str]:
    found = (line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines())
    return (point for point in found if point != "/run/netns")  # which ip(8) mounts once, for every namespace


def _loop_devices() -> Iterable[str]:
    """Each with the file behind it first."""
    for path in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):  # it has gone meanwhile
            yield f"{path.read_text().strip()} on {path.parts[3]}"


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
