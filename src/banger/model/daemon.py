"""The daemon's own facts."""

import msgspec


class DaemonStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The answer of `GET /daemon`. Memory is the proportional set size in bytes."""

    pid: int
    version: str
    uptime_s: float
    memory_bytes: int
    socket: str
    state_dir: str
    log: str
    vms: int
    running_vms: int
    running_operations: int
