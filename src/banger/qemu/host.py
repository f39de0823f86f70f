"""Facts of the host that a VM's start and its metrics need."""

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path

from banger.model.firecracker import NetworkInterface

_NET = {
    "rx_bytes": "tx_bytes_count",
    "rx_packets": "tx_packets_count",
    "tx_bytes": "rx_bytes_count",
    "tx_packets": "rx_packets_count",
}


def tsc_khz() -> int:
    """The host's TSC rate in kHz: as the kernel tells, else from the CPU's name, else its clock; 0: unknown."""
    told = Path("/sys/devices/system/cpu/cpu0/tsc_freq_khz")
    if told.exists():
        return int(told.read_text())
    lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    facts = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    rate = facts.get("model name", "").rpartition("@ ")[2].removesuffix("GHz")
    with contextlib.suppress(ValueError):
        return int(float(rate) * 1e6)
    with contextlib.suppress(ValueError):
        return int(float(facts.get("cpu MHz", "")) * 1e3)
    return 0


def cpu_seconds(pid: int) -> float:
    """What a process has used of all processors (proc(5), /proc/pid/stat, utime and stime)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def net_metrics(nics: Iterable[NetworkInterface]) -> dict[str, dict[str, int]]:
    """Firecracker's `net` and `net_<id>` groups, of cards on taps: what the host received, the guest has sent."""
    groups: dict[str, dict[str, int]] = {}
    for nic in nics:
        statistics = Path("/sys/class/net") / nic.host_dev_name / "statistics"
        with contextlib.suppress(OSError, ValueError):
            group = {theirs: int((statistics / ours).read_text()) for ours, theirs in _NET.items()}
            groups[f"net_{nic.iface_id}"] = group
            total = groups.setdefault("net", dict.fromkeys(_NET.values(), 0))
            groups["net"] = {name: total[name] + value for name, value in group.items()}
    return groups
