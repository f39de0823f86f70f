"""Documents that commands print, as plain dictionaries: reading them needs no import that costs time."""

from typing import TypedDict


class VmDocument(TypedDict):
    """What is told of a VM. Sizes in bytes, memory in MiB, times as RFC 3339 in UTC; uptime null unless it runs.

    `build` is the image that is being built in it; empty for a VM of a person's.
    """

    id: str
    name: str
    state: str
    image: str
    vcpu: int
    memory_mib: int
    disk_bytes: int
    disk_allocated_bytes: int
    work_disk_bytes: int
    work_disk_allocated_bytes: int
    engine: str
    engine_version: str
    engine_reason: str
    jailed: bool
    accelerator: str
    accelerator_reason: str
    network: str
    guest_ip: str
    nat: bool
    created_at: str
    uptime_s: float | None
    health: str
    opencode: bool
    build: str
    problem: str
    engine_pid: int | None
    vsock_socket: str


class VolumeDocument(TypedDict):
    """What is told of a volume: a work disk that belongs to no VM. Sizes in bytes, times as RFC 3339 in UTC.

    `image` and `vm` are names, of what it was made from and for; either may be gone.
    """

    name: str
    bytes: int
    allocated_bytes: int
    image: str
    vm: str
    created_at: str


class DiskCheck(TypedDict):
    """What `vm check` found in one disk; `notes` says what is wrong, and what is only to be known."""

    part: str
    ok: bool
    notes: list[str]
