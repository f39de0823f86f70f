"""From a configuration and what was opened for it to QEMU's command line. Pure."""

import json
from collections.abc import Iterator
from typing import NamedTuple

from banger.model.firecracker import Drive, EntropyDevice, NetworkInterface
from banger.qemu.disks import block_node
from banger.qemu.handles import Handles
from banger.qemu.machine import Configuration

# What a disposable Linux guest never uses is left out: each device costs time at boot.
MACHINE = "q35,hpet=off,usb=off,sata=off,smbus=off,vmport=off,smm=off,graphics=off,memory-backend=mem"
DEFAULT_BOOT_ARGS = "reboot=k panic=1 nomodule 8250.nr_uarts=0 i8042.noaux i8042.nomux i8042.dumbkbd swiotlb=noforce"
ACCEL = {"kvm": ["-accel", "kvm", "-cpu", "host"], "tcg": ["-accel", "tcg,thread=multi", "-cpu", "max"]}
# No new processes, no new privileges, no changes of limits, no obsolete calls (seccomp; qemu(1), -sandbox)
SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
USER_NETWORK = "user,id={id},ipv6=off,net=10.0.2.0/24,restrict={restrict}"
# The x86 port of Firecracker's boot timer before it moved to memory-mapped I/O; a guest writes BOOT_DONE there.
BOOT_TIMER_PORT = 0x3F0
BOOT_DONE = 123
BALLOON = "balloon"
# The guest may give blocks back; a write that finds the host's disk full pauses it, other errors are told to it
DISK = "discard=on,write-zeroes=on,werror=enospc,rerror=report"


class Wiring(NamedTuple):
    """Descriptors that QEMU inherits, one end of a socket pair each; -1 for none."""

    qmp: int
    serial: int
    vsock: int = -1
    boot_timer: int = -1


class HostFacts(NamedTuple):
    """What the command line takes from the host: the accelerator, the TSC's rate in kHz (0: unknown), PVH or not."""

    accelerator: str
    tsc_khz: int
    pvh_kernel: bool


def drive_device(drive_id: str) -> str:
    """The device's id; ids of drives and cards may be the same, those of devices not."""
    return f"drive-{drive_id}"


def nic_device(iface_id: str) -> str:
    return f"net-{iface_id}"


def qemu_argv(
    program: str, vm_id: str, config: Configuration, handles: Handles, wiring: Wiring, host: HostFacts
) -> list[str]:
    """QEMU's whole argv. The guest does not run until QMP says `cont`."""
    argv = [program, "-name", f"banger-{vm_id}", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
    argv += ["-S", "-sandbox", SANDBOX, "-M", MACHINE, *ACCEL[host.accelerator]]
    argv += [*_processors(config), *_memory(config), *_boot(config, handles, host)]
    argv += ["-chardev", f"socket,id=qmp,fd={wiring.qmp}", "-mon", "chardev=qmp,mode=control"]
    argv += ["-chardev", f"socket,id=serial,fd={wiring.serial}", "-serial", "chardev:serial"]
    argv += ["-device", "pcie-root-port,id=rp1,chassis=1,slot=1"]
    if wiring.vsock >= 0:
        argv += ["-chardev", f"socket,id=vs,fd={wiring.vsock}"]
        argv += ["-device", "vhost-user-vsock-pci,chardev=vs,id=vsk,bus=rp1"]
    if wiring.boot_timer >= 0:
        argv += ["-chardev", f"socket,id=timer,fd={wiring.boot_timer}"]
        argv += ["-device", f"isa-debugcon,iobase={BOOT_TIMER_PORT:#x},chardev=timer"]
    argv += _drives(config, handles)
    for nic in config.nics.values():
        argv += _nic(nic, handles)
    argv += [*_entropy(config.entropy), *_balloon(config)]
    return argv


def _processors(config: Configuration) -> list[str]:
    count = config.machine.vcpu_count
    if config.machine.smt and count > 1:
        return ["-smp", f"{count},sockets=1,cores={count // 2},threads=2"]
    return ["-smp", str(count)]


def _memory(config: Configuration) -> list[str]:
    size = config.machine.mem_size_mib
    huge = ",hugetlb=on,hugetlbsize=2M" if config.machine.huge_pages == "2M" else ""
    return ["-m", f"{size}M", "-object", f"memory-backend-memfd,id=mem,size={size}M,share=on{huge}"]


def _boot(config: Configuration, handles: Handles, host: HostFacts) -> Iterator[str]:
    if host.pvh_kernel:
        # qboot jumps into an uncompressed kernel in 0.2 s where SeaBIOS and a decompressor take 0.9
        yield from ("-bios", "qboot.rom")
    yield from ("-kernel", f"/proc/self/fd/{handles.kernel}")
    if handles.initrd >= 0:
        yield from ("-initrd", f"/proc/self/fd/{handles.initrd}")
    yield from ("-append", kernel_command_line(config, host))


def kernel_command_line(config: Configuration, host: HostFacts) -> str:
    """The boot arguments, then what the root drive says of itself, as Firecracker adds it."""
    given = config.boot.boot_args if config.boot else None
    words = [DEFAULT_BOOT_ARGS if given is None else given]
    root = next((drive for drive in config.drives.values() if drive.is_root_device), None)
    if root is not None:
        words.append(f"root=PARTUUID={root.partuuid}" if root.partuuid else "root=/dev/vda")
        words.append("ro" if root.is_read_only else "rw")
    if host.accelerator == "tcg" and host.tsc_khz and "tsc_early_khz=" not in words[0]:
        # an emulated guest that has to calibrate its TSC sometimes hangs in it
        words.append(f"tsc_early_khz={host.tsc_khz}")
    return " ".join(words).strip()


def root_first(config: Configuration) -> list[Drive]:
    """The drives in the order in which the guest shall find them."""
    return sorted(config.drives.values(), key=lambda drive: not drive.is_root_device)


def _drives(config: Configuration, handles: Handles) -> Iterator[str]:
    for number, drive in enumerate(root_first(config)):
        layers = handles.drives[drive.drive_id]
        for layer in layers:
            yield from ("-add-fd", f"fd={layer.fd},set={layer.fd}")
        name = f"disk{number}"
        yield from ("-blockdev", json.dumps(block_node(name, drive, layers, [layer.fd for layer in layers])))
        device = drive_device(drive.drive_id)
        yield from ("-device", f"virtio-blk-pci,drive={name},id={device},serial={drive.drive_id[:20]},{DISK}")


def _nic(nic: NetworkInterface, handles: Handles) -> Iterator[str]:
    device = nic_device(nic.iface_id)
    host = f"{device}-host"
    yield "-netdev"
    if nic.host_dev_name.startswith("user:"):
        yield USER_NETWORK.format(id=host, restrict="on" if nic.host_dev_name == "user:closed" else "off")
    else:
        yield f"tap,id={host},fd={handles.taps[nic.iface_id]}"
    mac = f",mac={nic.guest_mac}" if nic.guest_mac is not None else ""
    mtu = f",host_mtu={nic.mtu}" if nic.mtu is not None else ""
    yield from ("-device", f"virtio-net-pci,netdev={host},id={device},romfile={mac}{mtu}")


def _entropy(device: EntropyDevice | None) -> Iterator[str]:
    if device is None:
        return
    bucket = device.rate_limiter.bandwidth if device.rate_limiter else None
    limited = bucket is not None and bucket.size and bucket.refill_time
    limit = f",max-bytes={bucket.size},period={bucket.refill_time}" if bucket and limited else ""
    yield from ("-object", "rng-builtin,id=rng", "-device", f"virtio-rng-pci,rng=rng{limit}")


def _balloon(config: Configuration) -> Iterator[str]:
    if config.balloon is not None:
        oom = "on" if config.balloon.deflate_on_oom else "off"
        reporting = "on" if config.balloon.free_page_reporting else "off"
        options = f"deflate-on-oom={oom},free-page-reporting={reporting}"
        yield from ("-device", f"virtio-balloon-pci,id={BALLOON},{options}")
