"""The Firecracker API's documents, named and shaped as in its specification (firecracker.yaml, v1.17-dev).

Both sides use these: the daemon as a client, `banger-vmm` as a server. Optional fields that were
not given are `UNSET` and are left out of the JSON, as Firecracker does.
"""

from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

ApiId = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_]{1,64}$")]
Path = Annotated[str, Meta(min_length=1, max_length=4096)]


class Document(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """Base of request and response bodies."""


class BootSource(Document, frozen=True):
    """`/boot-source`: host paths of kernel and initramfs, and the kernel command line."""

    kernel_image_path: Path
    boot_args: str | UnsetType = UNSET
    initrd_path: Path | UnsetType = UNSET


class MachineConfiguration(Document, frozen=True):
    """`/machine-config`: vCPUs and memory in MiB."""

    vcpu_count: Annotated[int, Meta(ge=1, le=32)]
    mem_size_mib: Annotated[int, Meta(ge=1)]
    smt: bool = False
    track_dirty_pages: bool = False
    cpu_template: Literal["C3", "T2", "T2S", "T2CL", "T2A", "V1N1", "None"] | UnsetType = UNSET
    huge_pages: Literal["None", "Transparent", "2M"] = "None"


class TokenBucket(Document, frozen=True):
    size: Annotated[int, Meta(ge=0)]
    refill_time: Annotated[int, Meta(ge=0)]
    one_time_burst: Annotated[int, Meta(ge=0)] | UnsetType = UNSET


class RateLimiter(Document, frozen=True):
    bandwidth: TokenBucket | UnsetType = UNSET
    ops: TokenBucket | UnsetType = UNSET


class Drive(Document, frozen=True):
    """`/drives/{drive_id}`: a block device. The format is never probed: see `banger.qemu.argv`."""

    drive_id: ApiId
    is_root_device: bool
    path_on_host: Path | UnsetType = UNSET
    is_read_only: bool | UnsetType = UNSET
    partuuid: str | UnsetType = UNSET
    cache_type: Literal["Unsafe", "Writeback"] = "Unsafe"
    rate_limiter: RateLimiter | UnsetType = UNSET
    io_engine: Literal["Sync", "Async"] | UnsetType = UNSET
    socket: Path | UnsetType = UNSET


class NetworkInterface(Document, frozen=True):
    """`/network-interfaces/{iface_id}`: `host_dev_name` is a tap, or on banger-vmm `user:closed` or `user:nat`.

    A Linux interface name cannot hold a colon, so the extension can never hide a real tap.
    """

    iface_id: ApiId
    host_dev_name: Annotated[str, Meta(min_length=1, max_length=64)]
    guest_mac: Annotated[str, Meta(pattern=r"^([0-9a-fA-F]{2}:){5}[0-9a-fA-F]{2}$")] | UnsetType = UNSET
    mtu: Annotated[int, Meta(ge=68, le=65535)] | UnsetType = UNSET
    rx_rate_limiter: RateLimiter | UnsetType = UNSET
    tx_rate_limiter: RateLimiter | UnsetType = UNSET


class Vsock(Document, frozen=True):
    """`/vsock`: the guest's CID and the host's Unix socket for hybrid vsock."""

    guest_cid: Annotated[int, Meta(ge=3, le=0xFFFF_FFFE)]
    uds_path: Annotated[str, Meta(min_length=1, max_length=107)]
    vsock_id: str | UnsetType = UNSET


class InstanceActionInfo(Document, frozen=True):
    action_type: Literal["FlushMetrics", "InstanceStart", "SendCtrlAltDel"]


class Vm(Document, frozen=True):
    state: Literal["Paused", "Resumed"]


class InstanceInfo(Document, frozen=True, omit_defaults=False):
    app_name: str
    id: str
    state: Literal["Not started", "Running", "Paused"]
    vmm_version: str


class FirecrackerVersion(Document, frozen=True):
    firecracker_version: str


class Error(Document, frozen=True):
    fault_message: str


class FullVmConfiguration(Document, frozen=True, rename="kebab"):
    """`/vm/config`: everything that has been set."""

    boot_source: BootSource | UnsetType = UNSET
    drives: tuple[Drive, ...] = ()
    machine_config: MachineConfiguration | UnsetType = UNSET
    network_interfaces: tuple[NetworkInterface, ...] = ()
    vsock: Vsock | UnsetType = UNSET
