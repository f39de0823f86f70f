"""A home in which banger is killed at chosen points, and what must hold whenever it has been."""

import asyncio
import contextlib
import json
import os
import select
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from banger.client.api import Client
from banger.client.transport import DaemonLost, DaemonUnreachable
from banger.config import Settings
from banger.images.catalog import find_image, part_path
from banger.model.documents import VmDocument
from banger.model.errors import BangerError
from banger.model.image import WORK_SEED
from banger.model.operation import Operation, OperationState
from banger.model.vm import VmSpec
from banger.paths import ROOTS, Paths
from banger.service.bundle import RuntimeBundle
from banger.system.files import in_thread
from banger.system.host import start_ticks
from tests.support.crash_daemon import ENGINE, Plan
from tests.support.crash_engine import needs_replay
from tests.support.home import Home
from tests.unit.images import given
from tests.unit.images.tiny import key, make_image, make_legacy

ROOT = Path(__file__).parents[2]
MIB = 1024 * 1024
SETTINGS = "disk_reserve_mib = 0\nhealth_period_s = 3600.0\nboot_timeout_s = 20.0\nstop_timeout_s = 5.0\n"
FOREIGN = key("F")
OLD, NEW, NEWER = 80 * MIB, 96 * MIB, 112 * MIB
KEPT = "/kept"
# a block each
MINE, SPARE = (line * 128 for line in (b"what a person cannot make again\n", b"what else cannot be made again.\n"))
QUIET_S = 10.0


def output(*argv: str, input: str | None = None) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60, input=input)
    assert done.returncode == 0, f"{' '.join(argv)}: {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


async def make_images(paths: Paths) -> None:
    """Two that are as they should be, one of an older banger, one for another key, one and what was made of it."""
    bundle = RuntimeBundle(paths, Settings())
    await bundle.open()
    key = await bundle.key()
    for name, let_in, older in (("small", key, 0), ("other", key, 0), ("older", key, 1), ("foreign", FOREIGN, 0)):
        await in_thread(make_image, paths, name, f"{let_in.line}\n", seed_key=let_in.fingerprint, older=bool(older))
    make_legacy(paths, "older")
    await in_thread(make_image, paths, "parent", f"{key.line}\n", seed_key=key.fingerprint)
    await in_thread(make_image, paths, "child", f"{key.line}\n", seed_key=key.fingerprint, parents=("parent",))


def keep_something_in(disk: Path, content: bytes) -> None:
    """A file whose content is in the journal only, as after the end of a guest's power."""
    old, new = disk.with_name("old"), disk.with_name("new")
    old.write_bytes(b"?" * len(content))
    new.write_bytes(content)
    output("debugfs", "-w", "-R", f"write {old} {KEPT}", str(disk))
    block = output("debugfs", "-R", f"blocks {KEPT}", str(disk)).strip()
    output("debugfs", "-w", "-f", "-", str(disk), input=f"jo\njw -b {block} {new}\njc\n")
    old.unlink()
    new.unlink()


def small_vm(name: str, **changes: Any) -> VmSpec:
    spec = VmSpec(name=name, image="small", vcpu=1, memory_mib=128, engine="qemu")
    return msgspec.structs.replace(spec, **changes)


def read_overlay(path: Path) -> tuple[str, int]:
    """Backing file and virtual size of a qcow2 (QEMU, docs/interop/qcow2.txt)."""
    with path.open("rb") as file:
        magic, _, where, length, _, size = struct.unpack(">4sIQIIQ", file.read(32))
        assert magic == b"QFI\xfb"
        file.seek(where)
        return file.read(length).decode(), size


class Life:
    """A process that is not our child, nor perhaps that of anybody who reaps it soon."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._descriptor = os.pidfd_open(pid)

    def wait(self) -> None:
        poller = select.poll()
        poller.register(self._descriptor, select.POLLIN)
        assert poller.poll(QUIET_S * 1000), f"process {self.pid} did not end"
        os.close(self._descriptor)

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._descriptor, signal.SIGKILL)
        self.wait()


class Outcome(NamedTuple):
    """What the person who gave the command has seen: the operation at its end, or an error, or the daemon's end."""

    operation: Operation | None = None
    error: BangerError | None = None
    lost: bool = False
    begun: str = ""  # the id of the operation that was begun


def damage(disk: Path) -> None:
    """What e2fsck mends, and the guest's kernel has noted."""
    output("debugfs", "-w", "-f", "-", str(disk), input=f"sif {KEPT} links_count 3\nssv state 2\n")


class Found(NamedTuple):
    """What there is: VMs by name, names of volumes, and for each work disk what is in it that must not be lost."""

    vms: dict[str, VmDocument]
    volumes: list[str]
    kept: list[bytes]


class CrashHome:
    """A home with images and three things that do not run: the VM `mine`, the VM `bare` without a work disk, and the
    volume `spare`. What is in the work disk, and in the volume, must never be lost.
    """

    def __init__(self) -> None:
        self.home = Home(settings=SETTINGS)
        self.paths = Paths(self.home.state, self.home.runtime, self.home.root / "cache")
        self.client = Client(self.paths, start=False)
        self.notes = self.home.root / "crash"
        self._template = self.home.root / "template"
        self._life: Life | None = None
        for directory in (self.home.state, self.notes):
            directory.mkdir(mode=0o700)
        path = f"{self._programs()}:{os.environ['PATH']}"
        self._zygote = subprocess.Popen(
            [sys.executable, "-m", "tests.support.crash_daemon", str(self.notes)],
            env={**self.home.env, "PATH": path, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"},
            cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            asyncio.run(make_images(self.paths))
            self.start_daemon()
            self.done(lambda: self.client.register_image({"name": "given", **self._files()}))
            for name, size in (("mine", OLD), ("bare", 0), ("spare", OLD)):
                spec = small_vm(name, work_disk_bytes=size)
                self.done(lambda spec=spec: self.client.create_vm(spec))  # type: ignore[misc]
                self.done(lambda name=name: self.client.change_vm(name, "stop", force=True))  # type: ignore[misc]
            keep_something_in(self.paths.vm(self.client.show_vm("mine")["id"]).work_disk, MINE)
            self.done(lambda: self.client.delete_vm("spare", keep_work_disk=True))
            keep_something_in(self.paths.volume("spare").disk, SPARE)
            self.end_daemon()
            self.home.state.rename(self._template)
        except BaseException:
            self.close()
            raise

    def _files(self) -> dict[str, str]:
        """Files that can be registered as an image: no part of the state, and never changed."""
        directory = self.home.root / "files"
        directory.mkdir()
        kernel, initramfs = directory / "bzImage", directory / "initramfs"
        kernel.write_bytes(given.compressed(given.vmlinux()))
        initramfs.write_bytes(given.OURS)
        root = given.make_root(directory)
        return {"rootfs": str(root), "kernel": str(kernel), "initramfs": str(initramfs)}

    def _programs(self) -> Path:
        """A directory with a firecracker, which reads no overlays."""
        directory = self.home.root / "bin"
        directory.mkdir()
        script = directory / "firecracker"
        engine = shlex.join((sys.executable, "-I", "-S", str(ENGINE), str(self.notes)))
        script.write_text(f'#!/bin/sh\n[ "$1" = --version ] && echo "Firecracker v1.15.1" || exec {engine} "$@"\n')
        script.chmod(0o755)
        return directory

    def close(self) -> None:
        if self._life is not None:
            self._life.kill()
        self._life = None
        self._kill_others()
        self._zygote.communicate("")
        shutil.rmtree(self.home.root)

    def reset(self) -> None:
        """Everything as at the beginning."""
        if self._life is not None:
            self._life.kill()
            self._life = None
        self._kill_others()
        for directory in (self.home.state, self.home.runtime, self.notes):
            shutil.rmtree(directory, ignore_errors=True)
        self.notes.mkdir()
        output("cp", "-a", "--sparse=always", str(self._template), str(self.home.state))

    def start_daemon(self, at_start: Plan | None = None) -> bool:
        """Whether it serves; else it was killed at the planned point."""
        assert self._zygote.stdin is not None
        assert self._zygote.stdout is not None
        self._zygote.stdin.write(json.dumps(msgspec.to_builtins(at_start)) + "\n")
        self._zygote.stdin.flush()
        pid, serves = json.loads(self._zygote.stdout.readline())
        if serves:
            self._life = Life(pid)
        assert serves or at_start is not None, (self.notes / "daemon.log").read_text()
        return bool(serves)

    def end_daemon(self) -> None:
        assert self._life is not None
        self.client.stop_daemon()
        self._life.wait()
        self._life = None

    def crash_daemon(self) -> None:
        assert self._life is not None
        self._life.kill()
        self._life = None

    def give(self, command: Callable[[], Operation]) -> Outcome:
        """Give a command as a person does, and follow it to its end."""
        try:
            begun = command()
        except (DaemonLost, DaemonUnreachable):
            self._ended()
            return Outcome(lost=True)
        except BangerError as error:
            return Outcome(error=error)
        try:
            for _ in self.client.follow(begun.id):
                pass
            told = self.client.show_operation(begun.id)
            for other in self.client.list_operations():
                # what it has begun in the background belongs to it
                for _ in self.client.follow(other.id):
                    pass
            return Outcome(operation=told, begun=begun.id)
        except (DaemonLost, DaemonUnreachable):
            self._ended()
            return Outcome(lost=True, begun=begun.id)

    def _ended(self) -> None:
        assert self._life is not None
        self._life.wait()
        self._life = None

    def done(self, command: Callable[[], Operation]) -> Operation:
        """Give a command that must succeed."""
        outcome = self.give(command)
        operation = outcome.operation
        assert operation is not None, outcome
        assert operation.state is OperationState.DONE, operation
        return operation

    def note(self, name: str) -> list[str]:
        """The lines of a file in which daemons and engines tell something."""
        path = self.notes / name
        return path.read_text().splitlines() if path.exists() else []

    def _others(self) -> set[int]:
        """The processes of this home, but for the daemon and what forks daemons."""
        ours = {self._zygote.pid, self._life.pid if self._life else 0}
        found = {int(path.name) for path in Path("/proc").glob("[0-9]*")} - ours
        return {pid for pid in found if self._is_ours(pid)}

    def _is_ours(self, pid: int) -> bool:
        needle = os.fsencode(self.home.root)
        try:
            told = Path(f"/proc/{pid}/environ").read_bytes() + Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            return False
        return needle in told and start_ticks(pid) is not None

    def _kill_others(self) -> None:
        for pid in self._others():
            with contextlib.suppress(ProcessLookupError):
                Life(pid).kill()

    # what must hold

    def check(self, *, fresh: bool = False, damaged: bool = False) -> Found:
        """Assert that all is whole and nothing left over.

        `fresh`: the daemon has just been started, and nothing has been replaced since. `damaged`: the work disk of
        `mine` need not be whole.
        """
        vms = {vm["name"]: vm for vm in self.client.list_vms()}
        ids = {vm["id"] for vm in vms.values()}
        for vm in vms.values():
            assert vm["state"] in ("running", "stopped", "failed"), vm
            self._check_vm(vm)
        self._check_processes({vm["engine_pid"] for vm in vms.values() if vm["state"] == "running"})
        for directory in (self.paths.vms, self.home.runtime / "vms"):
            left = {path.name for path in directory.glob("*")} - ids
            assert not left, f"files of VMs that there are not: {left}"
        hidden = [path for path in self.home.state.rglob(".*") if path.name != ".lock"]
        assert not hidden, f"temporary files: {hidden}"
        assert not self.note("faults"), self.note("faults")
        self._check_owners()
        self._check_images(fresh=fresh)
        running = [found for found in self.client.list_operations() if found.state is OperationState.RUNNING]
        assert not running, f"operations that nothing works on: {running}"
        volumes = [volume["name"] for volume in self.client.list_volumes()]
        assert sorted(volumes) == sorted(path.name for path in self.paths.volumes.glob("*")), "a damaged volume"
        spared = self.paths.vm(vms["mine"]["id"]).work_disk if damaged and "mine" in vms else None
        disks = self.home.state.glob("v*/*/work.ext4")
        kept = [self._read_kept(disk, whole=disk != spared) for disk in disks]
        return Found(vms, volumes, [content for content in kept if content])

    def _check_vm(self, vm: VmDocument) -> None:
        files = self.paths.vm(vm["id"])
        (root,) = [files.state / name for name in ROOTS if (files.state / name).exists()]
        if root == files.root_overlay:
            output("qemu-img", "check", "-q", *(["-U"] if vm["state"] == "running" else []), str(root))
            base, size = read_overlay(root)
            assert base == str(self.paths.image(vm["image"]).root)
        else:
            output("e2fsck", "-fn", str(root))
            size = root.stat().st_size
        assert size == vm["disk_bytes"]
        work = files.work_disk
        assert (work.stat().st_size if work.exists() else 0) == vm["work_disk_bytes"], vm
        if vm["state"] == "running":
            health = self.client.vm_health(vm["name"])
            assert health.status == "healthy", health

    def _check_owners(self) -> None:
        """Nothing is lent to a program that has ended."""
        lent = [path for path in self.home.state.rglob("*") if path.lstat().st_uid != os.geteuid()]
        assert not lent, f"files of others: {lent}"

    def _check_images(self, *, fresh: bool) -> None:
        for entry in self.client.list_images():
            image, where = find_image(self.paths, entry["name"]), self.paths.image(entry["name"])
            wanted = {part.file for part in image.parts.values()} | {where.metadata.name, where.lock.name}
            left = {path.name for path in where.directory.iterdir()} - wanted
            assert not left or not fresh, f"files that the image does not name: {left}"
            assert all(self.paths.image(parent).directory.is_dir() for parent in image.parents), image.parents
            if WORK_SEED in image.parts:
                output("e2fsck", "-fn", str(part_path(self.paths, image, WORK_SEED)))
        assert len(self.client.list_images()) == len(list(self.paths.images.iterdir()))

    def _read_kept(self, disk: Path, *, whole: bool) -> bytes:
        """What is in the disk that must not be lost."""
        with self._replayed(disk) as replayed:
            if whole:
                output("e2fsck", "-fn", str(replayed))
            argv = ["debugfs", "-R", f"cat {KEPT}", str(replayed)]
            done = subprocess.run(argv, capture_output=True, check=True, timeout=60)
            assert done.stdout in (b"", MINE, SPARE), f"{KEPT} in {disk} is damaged"
            return done.stdout

    @contextmanager
    def _replayed(self, disk: Path) -> Iterator[Path]:
        """The disk, or a copy whose journal was replayed as a guest's kernel would."""
        if not needs_replay(str(disk)):
            yield disk
            return
        copy = self.notes / "copy.ext4"
        output("cp", "--sparse=always", str(disk), str(copy))
        output("e2fsck", "-y", "-E", "journal_only", str(copy))
        yield copy
        copy.unlink()

    def _check_processes(self, expected: set[int | None]) -> None:
        deadline = time.monotonic() + QUIET_S
        while left := self._others() - expected:
            told = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in left if start_ticks(pid)]
            assert time.monotonic() < deadline, f"processes are left: {told}"
            time.sleep(0.02)
