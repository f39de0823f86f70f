"""What crosses the host's channel to a guest's agent, as the host sees it. Everything received is bounded."""

from enum import IntEnum
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

TIMED_OUT = 124  # timeout(1)
NOT_EXECUTABLE = 126  # sh(1)
NOT_FOUND = 127
_ENOENT = 2

Text = Annotated[str, Meta(max_length=256)]
Argument = Annotated[str, Meta(max_length=1024 * 1024)]
Cells = Annotated[int, Meta(ge=1, le=65535)]
BootId = Annotated[str, Meta(pattern=r"^[0-9a-f-]{36}$")]
MachineId = Annotated[str, Meta(pattern=r"^([0-9a-f]{32})?$")]  # empty: none yet
HostKeys = Annotated[tuple[Annotated[str, Meta(max_length=2048)], ...], Meta(max_length=16)]
Count = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
Seconds = Annotated[float, Meta(ge=0, lt=1e12)]


class Stream(IntEnum):
    """What a frame of an exec stream carries; the numbers are the wire's."""

    STDIN = 0
    STDOUT = 1
    STDERR = 2
    EXIT = 3
    RESIZE = 4
    SIGNAL = 5


class Health(msgspec.Struct, frozen=True):
    """`GET /healthz`. Fields that a newer agent adds are ignored."""

    status: Text
    boot_id: BootId
    uptime_s: Annotated[float, Meta(ge=0)]
    agent_version: Text
    hostname: Text
    services: Annotated[dict[Text, Text], Meta(max_length=64)]
    agent_uptime_s: Annotated[float, Meta(ge=0)] | None = None  # since version 2


class InterfaceAddress(msgspec.Struct, frozen=True):
    """An address of the guest's, loopback left out."""

    interface: Annotated[str, Meta(max_length=32)]
    address: Annotated[str, Meta(pattern=r"^[0-9a-fA-F.:]{2,45}$")]
    prefix: Annotated[int, Meta(ge=0, le=128)]


Addresses = Annotated[tuple[InterfaceAddress, ...], Meta(max_length=256)]


class OsRelease(msgspec.Struct, frozen=True):
    """ID, NAME and VERSION_ID of os-release(5)."""

    id: Text
    name: Text
    version: Text


class Info(msgspec.Struct, frozen=True):
    """`GET /info`. `init` is systemd, openrc, runit or other."""

    agent_version: Text
    python: Text
    hostname: Text
    kernel: Text
    init: Text
    os: OsRelease
    boot_id: BootId
    machine_id: MachineId
    uptime_s: Seconds
    cpus: Annotated[int, Meta(ge=1, le=65536)]
    memory_bytes: Count
    memory_available_bytes: Count
    load: tuple[Seconds, Seconds, Seconds]
    addresses: Addresses
    ssh_host_keys: HostKeys


class Service(msgspec.Struct, frozen=True):
    """A service of the guest's init; `state` is running, stopped or failed."""

    name: Text
    state: Text


class Services(msgspec.Struct, frozen=True):
    """`GET /services`."""

    init: Text
    services: Annotated[tuple[Service, ...], Meta(max_length=256)]


class Port(msgspec.Struct, frozen=True):
    """A port on which something in the guest listens. `url`: where it answered in HTTP."""

    port: Annotated[int, Meta(ge=1, le=65535)]
    protocol: Literal["tcp", "udp"]
    addresses: Annotated[tuple[Annotated[str, Meta(pattern=r"^[0-9a-fA-F.:]{2,45}$")], ...], Meta(max_length=16)]
    pid: Annotated[int, Meta(ge=1, le=1 << 22)] | None
    process: Text
    url: Annotated[str, Meta(pattern=r"^http://[0-9a-zA-Z.:\[\]]{1,64}/$")] | None


class Ports(msgspec.Struct, frozen=True):
    """`GET /ports`."""

    ports: Annotated[tuple[Port, ...], Meta(max_length=256)]


class Identity(msgspec.Struct, frozen=True):
    """`GET /identity`: what distinguishes this machine from a copy of it."""

    hostname: Text
    machine_id: MachineId
    boot_id: BootId
    clock_s: Seconds
    addresses: Addresses
    ssh_host_keys: HostKeys


class GuestNetwork(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Address with prefix length, default route if any, DNS servers; `dns` None leaves them."""

    address: Annotated[str, Meta(max_length=18)]
    gateway: Annotated[str, Meta(max_length=15)] | None = None
    dns: Annotated[tuple[Annotated[str, Meta(max_length=15)], ...], Meta(max_length=3)] | None = None


class IdentityChange(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """`POST /identity`. None leaves a part alone; `entropy` is for the kernel's random numbers."""

    hostname: Annotated[str, Meta(max_length=63)] | None = None
    network: GuestNetwork | None = None
    clock_s: Annotated[float, Meta(gt=0, lt=1e10)] | None = None
    entropy: Annotated[bytes, Meta(min_length=1, max_length=512)] | None = None
    machine_id: Annotated[str, Meta(pattern=r"^[0-9a-f]{32}$")] | None = None
    host_keys: Literal["new"] | None = None


class Grown(msgspec.Struct, frozen=True):
    """The answer of `POST /grow`: bytes of the filesystem now, and whether it had less before."""

    bytes: Count
    grown: bool


class ExecRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """`POST /exec`. None: the agent's default (its own user, that user's home, no deadline)."""

    argv: Annotated[tuple[Argument, ...], Meta(min_length=1, max_length=65536)]
    env: dict[Argument, Argument] | None = None
    cwd: Annotated[str, Meta(min_length=1, max_length=4096)] | None = None
    user: Annotated[str, Meta(min_length=1, max_length=256)] | None = None
    tty: bool = False
    rows: Cells = 24
    cols: Cells = 80
    timeout_s: Annotated[float, Meta(gt=0, lt=1e9)] | None = None


class ExecExit(msgspec.Struct, frozen=True):
    """How a process ended: exactly one of status, signal, error (it never started) or timeout."""

    status: Annotated[int, Meta(ge=0, le=255)] | None = None
    signal: Annotated[int, Meta(ge=1, le=64)] | None = None
    error: Annotated[str, Meta(max_length=8192)] | None = None
    errno: Annotated[int, Meta(ge=0, le=4095)] = 0
    timeout: bool = False

    def __post_init__(self) -> None:
        if [self.status is None, self.signal is None, self.error is None, not self.timeout].count(False) != 1:
            raise ValueError("an exit is exactly one of status, signal, error and timeout")

    def exit_code(self) -> int:
        """The status that a shell would report."""
        if self.timeout:
            return TIMED_OUT
        if self.signal is not None:
            return 128 + self.signal
        if self.status is not None:
            return self.status
        return NOT_FOUND if self.errno == _ENOENT else NOT_EXECUTABLE
