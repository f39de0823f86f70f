"""Firecracker's jailer: a chroot, a user, limits and a pid namespace for one VM (Firecracker, docs/jailer.md).

The jail lies beside the VM's disks, so that files can be hard-linked into it; its socket directory has a short name
in the runtime directory by a symbolic link, as a socket's path may have 107 bytes.
"""

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec

from banger.engine.select import Engine
from banger.model.errors import NotFound
from banger.model.machine import Machine
from banger.model.sizes import MIB
from banger.paths import JailPaths
from banger.system.files import in_thread, remove_tree
from banger.system.mounts import bind_file

# Beside the ids that banger-vmm gives to QEMU; a VM's own id makes the rest
_FIRST_UID = 2_000_000_000
_UIDS = 100_000_000
_OVERHEAD_MIB = 256
_TASKS = 32
_CGROUPS = Path("/sys/fs/cgroup")
FILES_MAX = 8192
# another filesystem, or one without hard links
_NO_LINK = (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP)


class Inside(NamedTuple):
    """A machine with the names that its files have in the jail, and where each comes from; writable ones apart."""

    machine: Machine
    files: dict[str, str]
    writable: frozenset[str]


def jail_uid(vm_id: str) -> int:
    """The user, and group, that a VM's jailed engine runs as: its own."""
    return _FIRST_UID + int(vm_id, 16) % _UIDS


def inside(machine: Machine) -> Inside:
    """The machine as seen from within its jail. Pure."""
    files = {"/kernel": machine.kernel, "/initramfs": machine.initramfs}
    disks = []
    for disk in machine.disks:
        files[f"/disks/{disk.id}"] = disk.path
        disks.append(msgspec.structs.replace(disk, path=f"/disks/{disk.id}"))
    jailed = msgspec.structs.replace(
        machine,
        kernel="/kernel",
        initramfs="/initramfs",
        disks=tuple(disks),
        vsock_socket=f"/run/{Path(machine.vsock_socket).name}",
    )
    return Inside(jailed, files, frozenset(f"/disks/{disk.id}" for disk in disks if not disk.read_only))


def jail_argv(engine: Engine, machine: Machine, jail: JailPaths, uid: int, controllers: frozenset[str]) -> list[str]:
    """The jailer's words up to `--`. Pure; `controllers` are those of cgroup v2 that the host offers."""
    assert engine.jailer is not None
    argv = [engine.jailer, "--id", machine.id, "--exec-file", engine.program[0], "--uid", str(uid), "--gid", str(uid)]
    argv += ["--chroot-base-dir", str(jail.base), "--new-pid-ns", "--cgroup-version", "2"]
    limits = {"memory.max": (machine.memory_mib + _OVERHEAD_MIB) * MIB, "pids.max": machine.vcpu + _TASKS}
    wanted = [f"{name}={value}" for name, value in limits.items() if name.partition(".")[0] in controllers]
    if wanted:
        argv += ["--parent-cgroup", "banger"]
    for limit in wanted:
        argv += ["--cgroup", limit]
    return [*argv, "--resource-limit", f"no-file={FILES_MAX}", "--"]


def controllers() -> frozenset[str]:
    """The controllers of the host's cgroup v2; empty without one."""
    try:
        return frozenset((_CGROUPS / "cgroup.controllers").read_text().split())
    except OSError:
        return frozenset()


async def furnish(jail: JailPaths, inside: Inside, uid: int, log: Path) -> None:
    """Make the jail's directories and put the machine's files in: by hard link, or by a mount across filesystems.

    Block devices are made anew, with the same number.
    """
    await dismantle(jail)
    await in_thread(_make_directories, jail, uid)
    for name, source in (*inside.files.items(), ("/run/engine.log", str(log))):
        target = jail.root / name[1:]
        writable = name in inside.writable or source == str(log)
        await _put(Path(source), target, read_only=not writable)
        if writable:
            os.chown(target, uid, uid)


async def _put(source: Path, target: Path, *, read_only: bool) -> None:
    """Make `source` be `target` as well; a device gets a file of the jail's own, so that the host's keeps its owner."""
    try:
        seen = source.stat()
        if stat.S_ISBLK(seen.st_mode):
            os.mknod(target, stat.S_IFBLK | 0o600, seen.st_rdev)
        else:
            target.hardlink_to(source)
    except FileNotFoundError as error:
        raise NotFound(f"{source} is missing", hint="`banger image list` shows which images are whole") from error
    except OSError as error:
        if error.errno not in _NO_LINK:
            raise
        await bind_file(source, target, read_only=read_only)


def _make_directories(jail: JailPaths, uid: int) -> None:
    jail.root.mkdir(mode=0o700, parents=True)
    for directory, mode, owner in ((jail.root, 0o755, 0), (jail.root / "disks", 0o755, 0), (jail.run, 0o700, uid)):
        directory.mkdir(mode=mode, exist_ok=True)
        directory.chmod(mode)
        os.chown(directory, owner, owner)


async def dismantle(jail: JailPaths) -> None:
    """Remove the jail with all that is in it, and its cgroups. Absent is fine; linked files lose one name."""
    await remove_tree(jail.directory)
    for group in _groups(jail):
        group.rmdir()


def _groups(jail: JailPaths) -> Iterator[Path]:
    group = _CGROUPS / "banger" / jail.directory.name
    if group.is_dir():
        yield group
