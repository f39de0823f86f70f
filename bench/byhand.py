"""A machine started by hand: the QEMU command line, kernel and disks that banger uses, and nothing else of banger's.

The vsock backend is the same code, as QEMU needs one for the answer to be the same: `/healthz` over vsock.
"""

import asyncio
import os
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path

from banger.engine.payload import kernel_arguments
from banger.guest.channel import Guest
from banger.guest.ready import ReadyListener
from banger.model.firecracker import BootSource, Drive, MachineConfiguration, NetworkInterface, Vsock
from banger.model.machine import Machine, Nic
from banger.network.user import user_nic
from banger.qemu.argv import HostFacts, Wiring, qemu_argv
from banger.qemu.confine import confined
from banger.qemu.handles import open_handles
from banger.qemu.host import tsc_khz
from banger.qemu.machine import Configuration
from banger.qemu.serial import SerialRelay
from banger.qemu.vsock.service import VsockService


def configuration(image: Path, boot_args: str, directory: Path, accelerator: str) -> tuple[Configuration, HostFacts]:
    """What banger would PUT for a default VM of this image."""
    nic: Nic = user_nic("byhand", nat=False)
    machine = Machine(
        id="byhand",
        hostname="byhand",
        vcpu=2,
        memory_mib=1024,
        kernel=str(image / "vmlinux"),
        initramfs=str(image / "initramfs.cpio"),
        boot_args=boot_args,
        disks=(),
        nics=(nic,),
        vsock_socket=str(directory / "v.sock"),
    )
    config = Configuration()
    config.machine = MachineConfiguration(vcpu_count=machine.vcpu, mem_size_mib=machine.memory_mib)
    config.boot = BootSource(
        kernel_image_path=machine.kernel, initrd_path=machine.initramfs, boot_args=kernel_arguments(machine)
    )
    config.drives["root"] = Drive(
        drive_id="root", is_root_device=True, path_on_host=str(directory / "root.qcow2"), cache_type="Writeback"
    )
    config.nics["eth0"] = NetworkInterface(iface_id="eth0", host_dev_name=nic.host_device, guest_mac=nic.mac)
    config.vsock = Vsock(guest_cid=3, uds_path=machine.vsock_socket)
    return config, HostFacts(accelerator, tsc_khz(), pvh_kernel=True)


async def _boot(image: Path, boot_args: str, directory: Path, accelerator: str) -> float:
    """The moment of the answer, by the monotonic clock."""
    config, host = configuration(image, boot_args, directory, accelerator)
    pairs = [socket.socketpair() for _ in range(3)]
    qmp, serial, vsock = (theirs.fileno() for _, theirs in pairs)
    service = VsockService(pairs[2][0], guest_cid=3, uds_path=str(directory / "v.sock"))
    service.start()
    nowhere = os.open(os.devnull, os.O_WRONLY)
    relay = SerialRelay(pairs[1][0], nowhere)
    relay.start()
    handles = open_handles(config, {str(image / "root.ext4")})
    argv = qemu_argv("qemu-system-x86_64", "byhand", config, handles, Wiring(qmp, serial, vsock), host)
    argv.remove("-S")  # nobody is at the monitor to let the guest run
    async with ReadyListener(directory / "v.sock_1025") as ready:
        command = confined(argv, accelerator)
        child = await asyncio.create_subprocess_exec(*command, pass_fds=(qmp, serial, vsock, *handles.all()))
        try:
            await ready.wait(timeout=120)
            await Guest(directory / "v.sock").health()
            return time.monotonic()
        finally:
            child.kill()
            await child.wait()
            relay.close()
            handles.close()
            os.close(nowhere)
            service.close()
            for ours, theirs in pairs:
                ours.close()
                theirs.close()


def boot_by_hand(image: Path, boot_args: str, accelerator: str) -> float:
    """Seconds from the first command to the answer of /healthz."""
    directory = Path(tempfile.mkdtemp(prefix="bb-"))
    begun = time.monotonic()
    overlay = ["qemu-img", "create", "-q", "-f", "qcow2", "-b", str(image / "root.ext4"), "-F", "raw"]
    try:
        subprocess.run([*overlay, str(directory / "root.qcow2")], check=True)
        return asyncio.run(_boot(image, boot_args, directory, accelerator)) - begun
    finally:
        shutil.rmtree(directory)
