"""What the jailer is told, and what a machine looks like from within its jail."""

from pathlib import Path

from banger.engine.capabilities import firecracker_capabilities
from banger.engine.jail import inside, jail_argv, jail_uid
from banger.engine.select import Accelerator, Engine
from banger.model.machine import Disk, Machine
from banger.paths import Paths

ENGINE = Engine(
    name="firecracker",
    version="1.15.1",
    program=("/e/firecracker",),
    jailer="/e/jailer",
    capabilities=firecracker_capabilities("1.15.1"),
    accelerator=Accelerator("kvm", "", ""),
    reason="",
)
MACHINE = Machine(
    id="0123456789ab",
    hostname="a",
    vcpu=2,
    memory_mib=512,
    kernel="/images/debian/vmlinux",
    initramfs="/images/debian/initramfs.cpio",
    boot_args="quiet",
    disks=(Disk(id="root", path="/s/root.ext4", root=True), Disk(id="seed", path="/s/seed.ext4", read_only=True)),
    nics=(),
    vsock_socket="/r/vms/0123456789ab/v.sock",
)
JAIL = Paths(Path("/s"), Path("/r"), Path("/c")).jail(MACHINE.id)


def test_the_machine_has_other_names_inside_and_nothing_else_changes() -> None:
    view = inside(MACHINE)
    assert view.files == {
        "/kernel": MACHINE.kernel,
        "/initramfs": MACHINE.initramfs,
        "/disks/root": "/s/root.ext4",
        "/disks/seed": "/s/seed.ext4",
    }
    assert view.writable == {"/disks/root"}
    machine = view.machine
    assert (machine.kernel, machine.initramfs, machine.vsock_socket) == ("/kernel", "/initramfs", "/run/v.sock")
    assert [disk.path for disk in machine.disks] == ["/disks/root", "/disks/seed"]
    assert (machine.id, machine.vcpu, machine.memory_mib, machine.boot_args) == ("0123456789ab", 2, 512, "quiet")


def test_the_jailers_words() -> None:
    words = jail_argv(ENGINE, MACHINE, JAIL, 77, frozenset({"memory", "pids", "cpu"}))
    assert words == [
        "/e/jailer",
        *("--id", "0123456789ab", "--exec-file", "/e/firecracker", "--uid", "77", "--gid", "77"),
        *("--chroot-base-dir", "/s/jails", "--new-pid-ns", "--cgroup-version", "2"),
        *("--parent-cgroup", "banger", "--cgroup", f"memory.max={768 << 20}", "--cgroup", "pids.max=34"),
        *("--resource-limit", "no-file=8192", "--"),
    ]
    without = jail_argv(ENGINE, MACHINE, JAIL, 77, frozenset())
    assert "--cgroup" not in without
    assert "--parent-cgroup" not in without, "a host without cgroup v2 gets no cgroup instead of an error"


def test_every_machine_has_a_user_of_its_own() -> None:
    users = {jail_uid(vm_id) for vm_id in ("0123456789ab", "0123456789ac", "ffffffffffff", "000000000000")}
    assert len(users) == 4
    assert all(2_000_000_000 <= uid < 2**31 for uid in users)
