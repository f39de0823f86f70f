"""What a VM shall be, as the API's PUTs have said so far. No I/O but looking whether named files exist."""

from pathlib import Path
from typing import NoReturn

import msgspec

from banger.model.errors import Invalid
from banger.model.firecracker import (
    Balloon,
    BootSource,
    Drive,
    EntropyDevice,
    FullVmConfiguration,
    Logger,
    MachineConfiguration,
    MachineUpdate,
    Metrics,
    NetworkInterface,
    SerialDevice,
    Vsock,
)

DEFAULT_MACHINE = MachineConfiguration(vcpu_count=1, mem_size_mib=128)
NO_NET_LIMITER = "QEMU has no rate limiter for network cards; for a tap, `tc` on the host limits it"


class Configuration:
    """The documents that have been PUT; a later PUT of the same thing overwrites. Raises `Invalid` with the reason."""

    def __init__(self) -> None:
        self.machine = DEFAULT_MACHINE
        self.boot: BootSource | None = None
        self.drives: dict[str, Drive] = {}
        self.nics: dict[str, NetworkInterface] = {}
        self.vsock: Vsock | None = None
        self.balloon: Balloon | None = None
        self.entropy: EntropyDevice | None = None
        self.serial: SerialDevice | None = None
        self.logger: Logger | None = None
        self.metrics: Metrics | None = None

    def put_machine(self, document: MachineConfiguration) -> None:
        if document.track_dirty_pages:
            _refuse("track_dirty_pages", "it makes no diff snapshots")
        if document.cpu_template not in (None, "None"):
            _refuse("cpu_template", "templates are sets of KVM's CPU features")
        if document.smt and document.vcpu_count > 1 and document.vcpu_count % 2:
            raise Invalid("The vCPU count must be 1 or an even number with smt")
        if document.huge_pages != "None" and document.mem_size_mib % 2:
            raise Invalid("The memory size (MiB) must be a multiple of 2 with huge pages")
        if self.balloon is not None and self.balloon.amount_mib > document.mem_size_mib:
            raise Invalid("The memory size (MiB) is smaller than the balloon")
        self.machine = document

    def patch_machine(self, document: MachineUpdate) -> None:
        given = {field: value for field, value in msgspec.structs.asdict(document).items() if value is not None}
        if not given:
            raise Invalid("Empty PATCH request.")
        self.put_machine(msgspec.structs.replace(self.machine, **given))

    def put_boot(self, document: BootSource) -> None:
        _need_file(document.kernel_image_path, "kernel_image_path")
        if document.initrd_path is not None:
            _need_file(document.initrd_path, "initrd_path")
        self.boot = document

    def put_drive(self, document: Drive) -> None:
        others = [drive for drive in self.drives.values() if drive.drive_id != document.drive_id]
        if document.is_root_device and any(drive.is_root_device for drive in others):
            raise Invalid("A root block device already exists!")
        if document.socket is not None:
            _refuse("socket", "it has no vhost-user block devices")
        if document.path_on_host is None:
            raise Invalid("path_on_host is required for a block device")
        _need_file(document.path_on_host, "path_on_host")
        self.drives[document.drive_id] = document

    def put_nic(self, document: NetworkInterface) -> None:
        if document.rx_rate_limiter is not None or document.tx_rate_limiter is not None:
            _refuse("rx_rate_limiter and tx_rate_limiter", NO_NET_LIMITER)
        name, mac = document.host_dev_name, document.guest_mac
        if ":" in name and name not in ("user:closed", "user:nat"):
            raise Invalid(f"host_dev_name {name!r} is neither a tap, nor user:closed, nor user:nat")
        for other in self.nics.values():
            if other.iface_id == document.iface_id:
                continue
            if mac is not None and other.guest_mac is not None and other.guest_mac.lower() == mac.lower():
                raise Invalid(f"The MAC address is already in use: {mac}")
            if other.host_dev_name == name and ":" not in name:
                raise Invalid(f"The tap is already in use: {name}")
        self.nics[document.iface_id] = document

    def put_balloon(self, document: Balloon) -> None:
        if document.free_page_hinting:
            _refuse("free_page_hinting", "QEMU takes hints only while it migrates; free_page_reporting works")
        self.check_balloon(document.amount_mib)
        self.balloon = document

    def check_balloon(self, amount_mib: int) -> None:
        if amount_mib > self.machine.mem_size_mib:
            raise Invalid("Amount of pages requested is too large: the balloon cannot exceed the memory")

    def whole(self) -> FullVmConfiguration:
        """The answer of GET /vm/config."""
        return FullVmConfiguration(
            boot_source=self.boot,
            drives=tuple(self.drives.values()),
            machine_config=self.machine,
            network_interfaces=tuple(self.nics.values()),
            vsock=self.vsock,
            balloon=self.balloon,
            entropy=self.entropy,
            logger=self.logger,
            metrics=self.metrics,
        )


def _refuse(field: str, why: str) -> NoReturn:
    raise Invalid(f"{field} is not supported by banger-vmm: {why}")


def _need_file(path: str, field: str) -> None:
    """Device files and named pipes are not opened to look: that may wait, or do something."""
    try:
        if Path(path).is_file():
            with Path(path).open("rb"):
                return
        Path(path).stat()
    except (OSError, ValueError) as error:
        raise Invalid(f"The {field} {path!r} cannot be opened: {getattr(error, 'strerror', error)}") from error
