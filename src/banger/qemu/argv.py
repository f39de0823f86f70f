"""From a configuration to QEMU's command line. Pure.

Formats are explicit, never probed: a drive whose path ends in `.qcow2` is qcow2, any other is raw. The host chooses
the name; a guest that writes a qcow2 header into its raw disk gains nothing.
"""

from collections.abc import Iterator
from typing import NamedTuple

from msgspec import UNSET

from banger.model.errors import Invalid
from banger.model.firecracker import Drive, NetworkInterface
from banger.qemu.machine import Configuration

# What a disposable Linux guest never uses is left out: each device costs time at boot.
MACHINE = "q35,hpet=off,usb=off,sata=off,smbus=off,vmport=off,smm=off,graphics=off,memory-backend=mem"
DEFAULT_BOOT_ARGS = "reboot=k panic=1 nomodule 8250.nr_uarts=0 i8042.noaux i8042.nomux i8042.dumbkbd swiotlb=noforce"
ACCEL = {"kvm": ["-accel", "kvm", "-cpu", "host"], "tcg": ["-accel", "tcg,thread=multi", "-cpu", "max"]}
# No new processes, no new privileges, no changes of limits, no obsolete calls (seccomp; qemu(1), -sandbox)
SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
USER_NETWORK = "user,id={id},ipv6=off,net=10.0.2.0/24,restrict={restrict}"


class Wiring(NamedTuple):
    """Descriptors that QEMU inherits, one end of a socket pair each; vsock is -1 for none."""

    qmp: int
    serial: int
    vsock: int


class HostFacts(NamedTuple):
    """What the command line takes from the host: the accelerator, the TSC's rate in kHz (0: unknown), PVH or not."""

    accelerator: str
    tsc_khz: int
    pvh_kernel: bool


def qemu_argv(program: str, vm_id: str, config: Configuration, wiring: Wiring, host: HostFacts) -> list[str]:
    """QEMU's whole argv. Raises `Invalid` when no kernel was named."""
    if config.boot is None:
        raise Invalid("The kernel has not been specified: PUT /boot-source first")
    memory = config.machine.mem_size_mib
    argv = [program, "-name", f"banger-{vm_id}", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
    argv += ["-sandbox", SANDBOX, "-M", MACHINE, *ACCEL[host.accelerator]]
    argv += ["-smp", str(config.machine.vcpu_count), "-m", f"{memory}M"]
    argv += ["-object", f"memory-backend-memfd,id=mem,size={memory}M,share=on"]
    argv += _boot(config, host)
    argv += ["-chardev", f"socket,id=qmp,fd={wiring.qmp}", "-mon", "chardev=qmp,mode=control"]
    argv += ["-chardev", f"socket,id=serial,fd={wiring.serial}", "-serial", "chardev:serial"]
    argv += ["-device", "pcie-root-port,id=rp1,chassis=1,slot=1", "-device", "virtio-rng-pci"]
    if wiring.vsock >= 0:
        argv += ["-chardev", f"socket,id=vs,fd={wiring.vsock}"]
        argv += ["-device", "vhost-user-vsock-pci,chardev=vs,id=vsk,bus=rp1"]
    for drive in sorted(config.drives.values(), key=lambda drive: not drive.is_root_device):
        argv += _drive(drive)
    for nic in config.nics.values():
        argv += _nic(nic)
    return argv


def _boot(config: Configuration, host: HostFacts) -> Iterator[str]:
    boot = config.boot
    assert boot is not None
    if host.pvh_kernel:
        # qboot jumps into an uncompressed kernel in 0.2 s where SeaBIOS and a decompressor take 0.9
        yield from ("-bios", "qboot.rom")
    yield from ("-kernel", boot.kernel_image_path)
    if boot.initrd_path is not UNSET:
        yield from ("-initrd", boot.initrd_path)
    arguments = boot.boot_args if boot.boot_args is not UNSET else DEFAULT_BOOT_ARGS
    if host.accelerator == "tcg" and host.tsc_khz and "tsc_early_khz=" not in arguments:
        # an emulated guest that has to calibrate its TSC sometimes hangs in it
        arguments = f"{arguments} tsc_early_khz={host.tsc_khz}".strip()
    yield from ("-append", arguments)


def escape(value: str) -> str:
    """A value within a QEMU option list: commas are doubled."""
    return value.replace(",", ",,")


def _on(value: object) -> str:
    return "on" if value is True else "off"


def _drive(drive: Drive) -> Iterator[str]:
    assert isinstance(drive.path_on_host, str)
    file, read_only = f"file-{drive.drive_id}", _on(drive.is_read_only)
    # `Unsafe` promises nothing after a crash of the host: flushes are dropped, as Firecracker does
    cache = f"cache.no-flush={_on(drive.cache_type == 'Unsafe')}"
    yield "-blockdev"
    yield (
        f"driver=file,node-name={file},filename={escape(drive.path_on_host)},"
        f"read-only={read_only},discard=unmap,{cache}"
    )
    driver = "qcow2" if drive.path_on_host.endswith(".qcow2") else "raw"
    yield "-blockdev"
    yield f"driver={driver},node-name={drive.drive_id},file={file},read-only={read_only},discard=unmap,{cache}"
    yield "-device"
    yield f"virtio-blk-pci,drive={drive.drive_id},serial={drive.drive_id[:20]}"


def _nic(nic: NetworkInterface) -> Iterator[str]:
    name = nic.host_dev_name
    yield "-netdev"
    if name.startswith("user:"):
        yield USER_NETWORK.format(id=nic.iface_id, restrict=_on(name == "user:closed"))
    else:
        yield f"tap,id={nic.iface_id},ifname={escape(name)},script=no,downscript=no"
    mac = f",mac={nic.guest_mac}" if nic.guest_mac is not UNSET else ""
    yield "-device"
    yield f"virtio-net-pci,netdev={nic.iface_id},romfile={mac}"
