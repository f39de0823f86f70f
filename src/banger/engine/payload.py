"""From a machine to the Firecracker API's requests, in the order they are sent. Pure."""

import hashlib

from banger.model.firecracker import (
    BootSource,
    Document,
    Drive,
    EntropyDevice,
    InstanceActionInfo,
    MachineConfiguration,
    NetworkInterface,
    PartialDrive,
    Vsock,
)
from banger.model.machine import GUEST_CID, Disk, Machine

Request = tuple[str, str, Document]


WORK_DISK_ID = "work"
# Blocks that the guest frees are given back to the host; what reads as zeros already is not zeroed.
_ROOT_FLAGS = "rootflags=discard,noinit_itable"


def kernel_arguments(machine: Machine) -> str:
    """The image's boot arguments and what this VM's guest is told about itself."""
    words = [
        machine.boot_args,
        f"systemd.machine_id={hashlib.sha256(machine.id.encode()).hexdigest()[:32]}",
        f"banger.hostname={machine.hostname}",
    ]
    if "rootflags=" not in machine.boot_args:
        words.append(_ROOT_FLAGS)
    for number, disk in enumerate(sorted(machine.disks, key=lambda disk: not disk.root)):
        if disk.id == WORK_DISK_ID:
            words.append(f"banger.work=/dev/vd{'abcdefgh'[number]}")
    for nic in machine.nics[:1]:
        words += [
            f"banger.ip={nic.address}/{nic.prefix}",
            f"banger.gateway={nic.gateway}",
            f"banger.dns={','.join(nic.dns)}",
        ]
    return " ".join(words)


def configuration(machine: Machine) -> list[Request]:
    """Everything that is PUT before InstanceStart."""
    requests: list[Request] = [
        (
            "PUT",
            "/machine-config",
            MachineConfiguration(vcpu_count=machine.vcpu, mem_size_mib=machine.memory_mib),
        ),
        (
            "PUT",
            "/boot-source",
            BootSource(
                kernel_image_path=machine.kernel,
                initrd_path=machine.initramfs,
                boot_args=kernel_arguments(machine),
            ),
        ),
    ]
    requests += [
        (
            "PUT",
            f"/drives/{disk.id}",
            Drive(
                drive_id=disk.id,
                path_on_host=disk.path,
                is_root_device=disk.root,
                is_read_only=disk.read_only,
                cache_type="Writeback",
            ),
        )
        for disk in machine.disks
    ]
    requests += [
        (
            "PUT",
            f"/network-interfaces/{nic.id}",
            NetworkInterface(iface_id=nic.id, host_dev_name=nic.host_device, guest_mac=nic.mac),
        )
        for nic in machine.nics
    ]
    vsock = Vsock(guest_cid=GUEST_CID, uds_path=machine.vsock_socket)
    return [*requests, ("PUT", "/entropy", EntropyDevice()), ("PUT", "/vsock", vsock)]


def regrow(disk: Disk) -> Request:
    """PATCHed to a running engine after the disk's file has become larger: the guest is told of the new size."""
    return ("PATCH", f"/drives/{disk.id}", PartialDrive(drive_id=disk.id, path_on_host=disk.path))


START: Request = ("PUT", "/actions", InstanceActionInfo(action_type="InstanceStart"))
