"""The Firecracker API's documents, named and shaped as in its specification (firecracker.yaml, v1.17-dev).

Both sides use these: the daemon as a client, `banger-vmm` as a server. Optional fields that were not given are
`None` and are left out of the JSON; a `null` means the same as a field left out, as in Firecracker.
"""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

ApiId = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_]{1,64}$")]
Path = Annotated[str, Meta(min_length=1, max_length=4096)]
Tokens = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Mib = Annotated[int, Meta(ge=0, le=2**32 - 1)]
Seconds = Annotated[int, Meta(ge=0, le=2**16 - 1)]


class Document(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """Base of request and response bodies."""


class BootSource(Document, frozen=True):
    """`/boot-source`: host paths of kernel and initramfs, and the kernel command line."""

    kernel_image_path: Path
    boot_args: str | None = None
    initrd_path: Path | None = None


CpuTemplate = Literal["C3", "T2", "T2S", "T2CL", "T2A", "V1N1", "None"]
HugePages = Literal["None", "Transparent", "2M"]
VcpuCount = Annotated[int, Meta(ge=1, le=32)]
MemoryMib = Annotated[int, Meta(ge=1, le=2**32 - 1)]


class MachineConfiguration(Document, frozen=True):
    """PUT `/machine-config`: vCPUs and memory in MiB."""

    vcpu_count: VcpuCount
    mem_size_mib: MemoryMib
    smt: bool = False
    track_dirty_pages: bool = False
    cpu_template: CpuTemplate | None = None
    huge_pages: HugePages = "None"


class MachineUpdate(Document, frozen=True):
    """PATCH `/machine-config`: what is given changes."""

    vcpu_count: VcpuCount | None = None
    mem_size_mib: MemoryMib | None = None
    smt: bool | None = None
    track_dirty_pages: bool | None = None
    cpu_template: CpuTemplate | None = None
    huge_pages: HugePages | None = None


class TokenBucket(Document, frozen=True):
    """`size` tokens that refill in `refill_time` ms; 0 in either means no limit, as in Firecracker."""

    size: Tokens
    refill_time: Tokens
    one_time_burst: Tokens | None = None


class RateLimiter(Document, frozen=True):
    """Tokens are bytes in `bandwidth` and operations in `ops`."""

    bandwidth: TokenBucket | None = None
    ops: TokenBucket | None = None


class Drive(Document, frozen=True):
    """PUT `/drives/{drive_id}`: a block device. The format is never probed: see `banger.qemu.disks`."""

    drive_id: ApiId
    is_root_device: bool
    path_on_host: Path | None = None
    is_read_only: bool | None = None
    partuuid: str | None = None
    cache_type: Literal["Unsafe", "Writeback"] = "Unsafe"
    rate_limiter: RateLimiter | None = None
    io_engine: Literal["Sync", "Async"] | None = None
    socket: Path | None = None


class PartialDrive(Document, frozen=True):
    """PATCH `/drives/{drive_id}`: another file, or the same one after it has grown; another limiter."""

    drive_id: ApiId
    path_on_host: Path | None = None
    rate_limiter: RateLimiter | None = None


class NetworkInterface(Document, frozen=True):
    """PUT `/network-interfaces/{iface_id}`: `host_dev_name` is a tap, or on banger-vmm `user:closed` or `user:nat`.

    A Linux interface name cannot hold a colon, so the extension can never hide a real tap.
    """

    iface_id: ApiId
    host_dev_name: Annotated[str, Meta(min_length=1, max_length=64)]
    guest_mac: Annotated[str, Meta(pattern=r"^([0-9a-fA-F]{2}:){5}[0-9a-fA-F]{2}$")] | None = None
    mtu: Annotated[int, Meta(ge=68, le=65535)] | None = None
    rx_rate_limiter: RateLimiter | None = None
    tx_rate_limiter: RateLimiter | None = None


class PartialNetworkInterface(Document, frozen=True):
    """PATCH `/network-interfaces/{iface_id}`."""

    iface_id: ApiId
    rx_rate_limiter: RateLimiter | None = None
    tx_rate_limiter: RateLimiter | None = None


class Vsock(Document, frozen=True):
    """`/vsock`: the guest's CID and the host's Unix socket for hybrid vsock."""

    guest_cid: Annotated[int, Meta(ge=3, le=0xFFFF_FFFE)]
    uds_path: Annotated[str, Meta(min_length=1, max_length=107)]
    vsock_id: str | None = None


class Balloon(Document, frozen=True):
    """PUT and GET `/balloon`. Statistics are there when the interval was not 0 before the start."""

    amount_mib: Mib
    deflate_on_oom: bool
    stats_polling_interval_s: Seconds = 0
    free_page_hinting: bool = False
    free_page_reporting: bool = False


class BalloonUpdate(Document, frozen=True):
    """PATCH `/balloon`."""

    amount_mib: Mib


class BalloonStatsUpdate(Document, frozen=True):
    """PATCH `/balloon/statistics`."""

    stats_polling_interval_s: Seconds


class BalloonStats(Document, frozen=True):
    """GET `/balloon/statistics`: pages are of 4 KiB; what the guest does not tell is left out. Memory in bytes."""

    target_pages: int
    actual_pages: int
    target_mib: int
    actual_mib: int
    swap_in: int | None = None
    swap_out: int | None = None
    major_faults: int | None = None
    minor_faults: int | None = None
    free_memory: int | None = None
    total_memory: int | None = None
    available_memory: int | None = None
    disk_caches: int | None = None
    hugetlb_allocations: int | None = None
    hugetlb_failures: int | None = None


class EntropyDevice(Document, frozen=True):
    """`/entropy`: a virtio-rng."""

    rate_limiter: RateLimiter | None = None


class SerialDevice(Document, frozen=True):
    """`/serial`: where the console goes instead of standard output, and how many bytes of it."""

    serial_out_path: Path | None = None
    rate_limiter: TokenBucket | None = None


class Logger(Document, frozen=True):
    """`/logger`; the level is one of off, trace, debug, info, warning and error in any case."""

    log_path: Path | None = None
    level: Annotated[str, Meta(pattern=r"^(?i:off|trace|debug|info|warn|warning|error)$")] | None = None
    show_level: bool | None = None
    show_log_origin: bool | None = None
    module: str | None = None


class Metrics(Document, frozen=True):
    """`/metrics`: the file or named pipe that gets a line of JSON at each flush."""

    metrics_path: Path
    emit_id: bool = False
    properties: dict[str, str] | None = None


class InstanceActionInfo(Document, frozen=True):
    """PUT `/actions`."""

    action_type: Literal["FlushMetrics", "InstanceStart", "SendCtrlAltDel"]


class Vm(Document, frozen=True):
    """PATCH `/vm`."""

    state: Literal["Paused", "Resumed"]


class InstanceInfo(Document, frozen=True, omit_defaults=False):
    """GET `/`."""

    app_name: str
    id: str
    state: Literal["Not started", "Running", "Paused"]
    vmm_version: str


class FirecrackerVersion(Document, frozen=True):
    """GET `/version`."""

    firecracker_version: str


class Error(Document, frozen=True):
    """The body of every refusal."""

    fault_message: str


class FullVmConfiguration(Document, frozen=True, rename="kebab"):
    """GET `/vm/config`, and the file of `--config-file`: everything that has been set.

    The last four are here so that a file of Firecracker's can be read: banger-vmm refuses them when they say anything.
    """

    boot_source: BootSource | None = None
    drives: tuple[Drive, ...] = ()
    machine_config: MachineConfiguration | None = None
    network_interfaces: tuple[NetworkInterface, ...] = ()
    vsock: Vsock | None = None
    balloon: Balloon | None = None
    entropy: EntropyDevice | None = None
    logger: Logger | None = None
    metrics: Metrics | None = None
    cpu_config: dict[str, object] | str | None = None
    memory_hotplug: dict[str, object] | None = None
    mmds_config: dict[str, object] | None = None
    pmem: tuple[dict[str, object], ...] = ()
