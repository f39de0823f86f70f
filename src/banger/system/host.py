"""Facts about this host, from procfs."""

import os
from functools import lru_cache
from pathlib import Path


@lru_cache(maxsize=1)
def boot_id() -> str:
    """The kernel's random id of this boot."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def memory_total_bytes() -> int:
    import psutil  # here, so that engines, which want little of this module, stay small

    return int(psutil.virtual_memory().total)


def cpu_count() -> int:
    """Processors that we may use."""
    return len(os.sched_getaffinity(0))


def start_ticks(pid: int) -> int | None:
    """When the process started, in ticks since boot (proc(5), stat field 22); None when it is gone or a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # the name in parentheses may hold anything, so count from the last one
    fields = stat[stat.rindex(b")") + 2 :].split()
    return None if fields[0] in (b"Z", b"X") else int(fields[19])


def has_root(pid: int, directory: Path) -> bool:
    """Whether a process has this directory as its root; by identity, as names differ between mount namespaces."""
    try:
        return Path(f"/proc/{pid}/root").samefile(directory)
    except OSError:
        return False


def command_lines() -> dict[int, list[str]]:
    """Argv of every process that we may read."""
    import psutil

    found: dict[int, list[str]] = {}
    for process in psutil.process_iter():
        try:
            found[process.pid] = process.cmdline()
        except psutil.Error:
            continue
    return found
