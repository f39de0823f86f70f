"""Metrics: Firecracker's names, a line of JSON at each flush (docs/metrics.md there).

What this engine does not measure is left out, rather than said to be zero. Counters tell what was counted since the
flush before.
"""

import os
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import msgspec

from banger.model import firecracker
from banger.model.errors import Invalid
from banger.qemu.outputs import open_output

PERIOD_S = 60.0
Groups = Mapping[str, Mapping[str, int]]
# of the process, not of the time since the last flush
_LASTING = frozenset({"process_startup_time_us", "process_startup_time_cpu_us"})
_LATENCIES = "latencies_us"
_API_NAMES = {
    "actions": "actions",
    "boot-source": "boot_source",
    "cpu-config": "cpu_cfg",
    "drives": "drive",
    "hotplug": "hotplug_memory",
    "logger": "logger",
    "machine-config": "machine_cfg",
    "metrics": "metrics",
    "mmds": "mmds",
    "network-interfaces": "network",
    "pmem": "pmem",
    "serial": "serial",
    "vsock": "vsock",
    "version": "vmm_version",
    "": "instance_info",
}


class Metrics:
    """Counts, and writes what was counted."""

    def __init__(self) -> None:
        self._counters: defaultdict[str, defaultdict[str, int]] = defaultdict(lambda: defaultdict(int))
        self._before: dict[tuple[str, str], int] = {}
        self._output = -1
        self._extra: dict[str, object] = {}

    @property
    def configured(self) -> bool:
        return self._output >= 0

    def configure(self, document: firecracker.Metrics, vm_id: str) -> None:
        """Where to write; once only. Raises `Invalid`."""
        if self.configured:
            raise Invalid("The metrics system is already initialized")
        self._output = open_output(document.metrics_path)
        if document.emit_id:
            self._extra["id"] = vm_id
        if document.properties is not None:
            self._extra["properties"] = document.properties

    def count(self, group: str, name: str, by: int = 1) -> None:
        self._counters[group][name] += by

    def gauge(self, group: str, name: str, value: int) -> None:
        """A value that is told as it is."""
        self._counters[group][name] = value

    @contextmanager
    def latency(self, name: str) -> Iterator[None]:
        """Note how long the body took, if it succeeds."""
        began = time.monotonic()
        yield
        self.gauge(_LATENCIES, name, int((time.monotonic() - began) * 1e6))

    def request(self, method: str, path: str, *, failed: bool) -> None:
        """Count a request of the API; GETs have no count of failures."""
        name = _API_NAMES.get(path.strip("/").split("/")[0])
        if name is None or method not in ("GET", "PUT", "PATCH"):
            return
        group = f"{method.lower()}_api_requests"
        self.count(group, f"{name}_count")
        if failed and method != "GET":
            self.count(group, f"{name}_fails")

    def flush(self, measured: Groups) -> None:
        """Write one line, with what others have measured; nothing when no file was named."""
        if not self.configured:
            return
        line: dict[str, object] = {"utc_timestamp_ms": int(time.time() * 1000), **self._extra}
        for group in {**self._counters, **measured}:
            values = {**self._counters.get(group, {}), **measured.get(group, {})}
            line[group] = {name: self._since(group, name, value) for name, value in values.items()}
        try:
            os.write(self._output, msgspec.json.encode(line) + b"\n")
        except OSError:
            self.count("logger", "missed_metrics_count")

    def _since(self, group: str, name: str, value: int) -> int:
        if name in _LASTING or group == _LATENCIES:
            return value
        before = self._before.get((group, name), 0)
        self._before[group, name] = value
        return value - before

    def close(self) -> None:
        if self.configured:
            os.close(self._output)
            self._output = -1
