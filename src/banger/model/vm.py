"""Virtual machines: what is asked, what is stored, what is shown."""

from enum import StrEnum
from typing import Literal

import msgspec

from banger.model.errors import Invalid
from banger.model.names import validate_name
from banger.model.sizes import GIB, MIB, TIB, show_size

MEMORY_MIN_MIB = 128
VCPU_MAX = 32
WantedEngine = Literal["auto", "firecracker", "qemu"]
DEFAULT_VCPU = 2
DEFAULT_MEMORY_MIB = 1024
OPENCODE_MEMORY_MIB = 1024  # it peaks at 800 MiB while it starts, and the guest needs some itself
DEFAULT_WORK_DISK_BYTES = 8 * GIB
WORK_DISK_MIN_BYTES = 64 * MIB
DISK_MAX_BYTES = 16 * TIB - GIB  # ext4's end with blocks of 4 KiB, on hosts that have ext4 themselves
OPENCODE_PORT = 4096
OPENCODE_USER = "opencode"


class VmState(StrEnum):
    CREATING = "creating"
    RUNNING = "running"
    PAUSED = "paused"
    STOPPED = "stopped"
    FAILED = "failed"
    DELETING = "deleting"


LIVE = frozenset({VmState.RUNNING, VmState.PAUSED})


class VmSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The body of `POST /vms`: what the person asked for. Memory in MiB, disks in bytes.

    `opencode` starts the server where the image has it; `wait_opencode` waits until it answers. `disk_bytes` None
    means the image's. `work_disk_bytes` 0 means none, None the usual size. `volume` is one that becomes the work disk.
    """

    name: str | None = None
    image: str = "debian"
    vcpu: int = DEFAULT_VCPU
    memory_mib: int = DEFAULT_MEMORY_MIB
    nat: bool = False
    engine: WantedEngine = "auto"
    opencode: bool = True
    wait_opencode: bool = True
    disk_bytes: int | None = None
    work_disk_bytes: int | None = None
    volume: str | None = None

    def check(self, *, host_memory_mib: int) -> None:
        """Raise `Invalid` for a name or size that cannot be."""
        if self.name is not None:
            validate_name(self.name)
        validate_name(self.image, "image name")
        if not 1 <= self.vcpu <= VCPU_MAX:
            raise Invalid(f"a VM cannot have {self.vcpu} vCPUs", hint=f"choose --vcpu from 1 to {VCPU_MAX}")
        if self.memory_mib < MEMORY_MIN_MIB:
            raise Invalid(f"{self.memory_mib} MiB of memory is too little", hint=f"choose at least {MEMORY_MIN_MIB}M")
        if self.memory_mib > host_memory_mib:
            raise Invalid(
                f"{self.memory_mib} MiB of memory is more than this host has",
                hint=f"choose at most {host_memory_mib}M",
            )
        self._check_disks()

    def _check_disks(self) -> None:
        if self.volume is not None:
            validate_name(self.volume, "volume name")
            if self.work_disk_bytes is not None:
                raise Invalid("a volume and a size for a new work disk were given", hint="choose one of them")
        if self.disk_bytes is not None:
            check_disk_size(self.disk_bytes, "--disk", MIB)
        if self.work_disk_bytes:
            check_disk_size(self.work_disk_bytes, "--work-disk", WORK_DISK_MIN_BYTES)


class VmChange(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The body of `PATCH /vms/{ref}`: what shall be otherwise; None leaves it as it is.

    `work_disk_bytes` is the size that the work disk grows to. `image` gives a stopped VM a fresh root disk of that
    image; what was on the old one is lost, and the work disk stays.
    """

    work_disk_bytes: int | None = None
    image: str | None = None

    def check(self) -> None:
        """Raise `Invalid` when nothing is asked for, or something that cannot be."""
        if self.work_disk_bytes is None and self.image is None:
            raise Invalid("nothing was asked to be changed", hint="`banger vm set --help` shows what can be")
        if self.image is not None:
            validate_name(self.image, "image name")
        if self.work_disk_bytes is not None:
            check_disk_size(self.work_disk_bytes, "--work-disk", WORK_DISK_MIN_BYTES)


def check_disk_size(size: int, flag: str, least: int) -> None:
    """Raise `Invalid` for a disk that cannot be of so many bytes."""
    if size < least or size > DISK_MAX_BYTES:
        raise Invalid(
            f"{flag}: a disk of {show_size(size)} is not possible",
            hint=f"choose {show_size(least)} to {show_size(DISK_MAX_BYTES)}",
        )
    if size % MIB:
        raise Invalid(f"{flag}: {size} bytes are no whole MiB", hint=f"choose {size // MIB + 1}M")


class EngineProcess(msgspec.Struct, frozen=True):
    """Identity of a running engine: a pid alone may be recycled, so the start time (ticks since boot) goes with it."""

    pid: int
    start_ticks: int
    boot_id: str


class Vm(msgspec.Struct, frozen=True, kw_only=True):
    """A VM as stored. Times are seconds since the epoch.

    `engine_reason` says why this engine runs it; `jailed`, that it does so in a chroot, as a user of its own;
    `opencode`, that its image has the server and it shall run. `work_disk_bytes` is 0 for a VM without a work disk;
    `keep_work_disk` names the volume that its work disk becomes when it is deleted. `build` names the image that is
    being built in it: such a VM is the build's, and goes with it.
    """

    id: str
    name: str
    state: VmState
    image: str
    vcpu: int
    memory_mib: int
    nat: bool
    engine: str
    accelerator: str
    accelerator_reason: str
    guest_ip: str
    disk_bytes: int
    created_at: float
    started_at: float | None = None
    process: EngineProcess | None = None
    problem: str = ""
    wanted_engine: WantedEngine = "auto"
    engine_version: str = ""
    engine_reason: str = ""
    jailed: bool = False
    opencode: bool = False
    work_disk_bytes: int = 0
    keep_work_disk: str = ""
    build: str = ""

    @property
    def memory_bytes(self) -> int:
        return self.memory_mib * MIB


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One named health check: whether it passed, what was seen, and the next step when it failed.

    `starting`: it passes for now, as what it looks at may still be on its way. `checked_at` is when it was looked at,
    `since` when it began to pass or fail without a break; both in seconds since the epoch.
    """

    name: str
    ok: bool
    detail: str
    hint: str = ""
    starting: bool = False
    checked_at: float = 0.0
    since: float = 0.0


class VmHealth(msgspec.Struct, frozen=True, kw_only=True):
    """The answer of `GET /vms/{ref}/health`; `status` is healthy, unhealthy or stopped."""

    name: str
    status: str
    checked_at: float
    checks: tuple[Check, ...]

    @property
    def settled(self) -> bool:
        """Healthy, with nothing still on its way."""
        return self.status == "healthy" and not any(check.starting for check in self.checks)

    @property
    def first_failure(self) -> Check | None:
        return next((check for check in self.checks if not check.ok), None)


class OpencodeAccess(msgspec.Struct, frozen=True, kw_only=True):
    """Where a VM's opencode server listens in the guest, and how to log in (HTTP Basic)."""

    port: int
    username: str
    password: str


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """A file that holds all that is known of a VM, for whoever looks for a fault; `look` is where to look first."""

    path: str
    look: str
