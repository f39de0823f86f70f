"""What a VM shall be, as the API's PUTs have said so far. No I/O but looking whether named files exist."""

from pathlib import Path
from typing import TypeVar

from msgspec import UNSET, UnsetType

from banger.model.errors import Invalid
from banger.model.firecracker import (
    BootSource,
    Drive,
    FullVmConfiguration,
    MachineConfiguration,
    NetworkInterface,
    Vsock,
)

DEFAULT_MACHINE = MachineConfiguration(vcpu_count=1, mem_size_mib=128)
T = TypeVar("T")


class Configuration:
    """The documents that have been PUT; a later PUT of the same thing overwrites. Raises `Invalid` with the reason."""

    def __init__(self) -> None:
        self.machine = DEFAULT_MACHINE
        self.boot: BootSource | None = None
        self.drives: dict[str, Drive] = {}
        self.nics: dict[str, NetworkInterface] = {}
        self.vsock: Vsock | None = None

    def put_machine(self, document: MachineConfiguration) -> None:
        _refuse("huge_pages", document.huge_pages != "None")
        _refuse("track_dirty_pages", document.track_dirty_pages)
        _refuse("smt", document.smt)
        _refuse("cpu_template", document.cpu_template not in (UNSET, "None"))
        self.machine = document

    def put_boot(self, document: BootSource) -> None:
        _need_file(document.kernel_image_path, "kernel_image_path")
        if document.initrd_path is not UNSET:
            _need_file(document.initrd_path, "initrd_path")
        self.boot = document

    def put_drive(self, drive_id: str, document: Drive) -> None:
        _same_id(drive_id, document.drive_id, "drive_id")
        if document.is_root_device and any(d.is_root_device and d.drive_id != drive_id for d in self.drives.values()):
            raise Invalid("A root block device already exists!")
        for field in ("partuuid", "rate_limiter", "socket"):
            _refuse(field, getattr(document, field) is not UNSET)
        if isinstance(document.path_on_host, UnsetType):
            raise Invalid("path_on_host is required for a block device")
        _need_file(document.path_on_host, "path_on_host")
        self.drives[drive_id] = document

    def put_nic(self, iface_id: str, document: NetworkInterface) -> None:
        _same_id(iface_id, document.iface_id, "iface_id")
        for field in ("rx_rate_limiter", "tx_rate_limiter", "mtu"):
            _refuse(field, getattr(document, field) is not UNSET)
        name = document.host_dev_name
        if ":" in name and name not in ("user:closed", "user:nat"):
            raise Invalid(f"host_dev_name {name!r} is neither a tap, nor user:closed, nor user:nat")
        mac = document.guest_mac
        if mac is not UNSET and any(n.guest_mac == mac and n.iface_id != iface_id for n in self.nics.values()):
            raise Invalid(f"The MAC address is already in use: {mac}")
        self.nics[iface_id] = document

    def put_vsock(self, document: Vsock) -> None:
        self.vsock = document

    def whole(self) -> FullVmConfiguration:
        """The answer of GET /vm/config."""
        return FullVmConfiguration(
            boot_source=_or_unset(self.boot),
            drives=tuple(self.drives.values()),
            machine_config=self.machine,
            network_interfaces=tuple(self.nics.values()),
            vsock=_or_unset(self.vsock),
        )


def _or_unset(document: T | None) -> T | UnsetType:
    return UNSET if document is None else document


def _refuse(field: str, given: bool) -> None:
    if given:
        raise Invalid(f"{field} is not supported by banger-vmm")


def _same_id(path: str, body: str, field: str) -> None:
    if path != body:
        raise Invalid(f"The {field} in the path ({path}) does not match the one in the body ({body})")


def _need_file(path: str, field: str) -> None:
    try:
        with Path(path).open("rb"):
            pass
    except OSError as error:
        raise Invalid(f"The {field} {path!r} cannot be opened: {error.strerror}") from error
