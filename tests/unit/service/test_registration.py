"""Registering and promoting: nothing is copied before it shall be, and VMs keep their disks when the files go."""

import asyncio
import contextlib
import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from banger.config import Settings
from banger.images.catalog import find_image, part_path, sweep
from banger.images.parts import bring_up_to_date, sweep_parts
from banger.images.verify import verify_image
from banger.jobs.operations import Job, Operations
from banger.model.errors import Conflict, Invalid, NotFound
from banger.model.image import MODULES, WORK_SEED, Image
from banger.model.operation import EventKind, Operation, OperationState
from banger.model.registration import PromoteSpec, RegisterSpec
from banger.model.vm import DEFAULT_WORK_DISK_BYTES, Vm, VmSpec, VmState
from banger.paths import Paths
from banger.service import registration
from banger.service.admission import Admission
from banger.service.bundle import RuntimeBundle
from banger.service.check import CheckService
from banger.service.disks import root_size, work_size
from banger.service.drafts import Drafts
from banger.service.registration import Registration
from banger.service.vms import check_memory
from banger.storage.overlays import create_root_overlay
from banger.store.db import open_database
from banger.store.operations import OperationStore
from banger.store.vms import VmStore
from tests.unit.images.cpios import archive
from tests.unit.images.given import OURS, RELEASE, compressed, make_root, vmlinux
from tests.unit.images.recorder import Recorder
from tests.unit.images.tiny import make_image, needs_e2fsprogs, room
from tests.unit.service.operating import Operating
from tests.unit.service.pretend import disks_of
from tests.unit.service.test_drafts import appliance
from tests.unit.test_store import make_vm

pytestmark = needs_e2fsprogs
needs_qemu_img = pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-utils is not installed")
VM_ID = "0123456789ab"


class Bench(Operating):
    """A person's files, and a daemon's objects as far as images need them."""

    def __init__(self, directory: Path, vms: VmStore, operations: Operations) -> None:
        self.paths = Paths(directory / "s", directory / "r", directory / "c")
        self.paths.state.mkdir()
        self.paths.runtime.mkdir()
        self.files = directory / "files"
        self.files.mkdir()
        self.vms, self.operations = vms, operations
        self.admission = Admission(self.paths, Settings(disk_reserve_mib=0))
        bundle = RuntimeBundle(self.paths, Settings())
        asyncio.run(bundle.open())
        self.drafts = Drafts(self.paths, bundle, appliance(self.paths), room)
        self.service = Registration(self.paths, vms, operations, self.drafts)
        self.root = make_root(self.files)
        self.kernel = self.file("vmlinux", vmlinux())
        self.initramfs = self.file("initrd", OURS)

    def file(self, name: str, content: bytes) -> Path:
        path = self.files / name
        path.write_bytes(content)
        return path

    def spec(self, **changes: Any) -> RegisterSpec:
        spec = RegisterSpec(name="mine", rootfs=str(self.root), kernel=str(self.kernel), initramfs=str(self.initramfs))
        return msgspec.structs.replace(spec, **changes)

    def register(self, **changes: Any) -> Operation:
        return self.run(lambda: self.service.register(self.spec(**changes)))

    def again(self) -> Operation:
        return self.run(lambda: self.service.register(RegisterSpec(name="mine")))

    def promote(self, new: str | None = None) -> Operation:
        return self.run(lambda: self.service.promote("mine", PromoteSpec(new=new)))

    def notes(self, operation: Operation) -> str:
        assert operation.state is OperationState.DONE, operation.error
        told = self.operations.events(operation.id)
        return "\n".join(event.data["text"] for event in told if event.kind is EventKind.NOTE)

    @property
    def image(self) -> Image:
        return find_image(self.paths, "mine")

    def own(self) -> set[str]:
        """What lies in the image's directory."""
        return {path.name for path in self.paths.image("mine").directory.iterdir()} - {".lock"}

    def vm(self) -> Vm:
        """A VM of the image that does not run, with a root disk over it."""
        vm = msgspec.structs.replace(make_vm("a", VM_ID), image="mine", state=VmState.STOPPED, process=None)
        self.vms.add(vm)
        self.paths.vm(VM_ID).state.mkdir(parents=True)
        asyncio.run(create_root_overlay(part_path(self.paths, self.image, "root"), self.paths.vm(VM_ID).root_overlay))
        return vm

    def behind(self) -> str:
        """The file that the VM's root disk names."""
        argv = ["qemu-img", "info", "--output=json", str(self.paths.vm(VM_ID).root_overlay)]
        done = subprocess.run(argv, capture_output=True, check=True, timeout=30)
        info: dict[str, str] = msgspec.json.decode(done.stdout)
        return info["backing-filename"]

    def start(self) -> str:
        """What the next start does to the root disk; its notes."""

        async def work(job: Job) -> None:
            async with job.stage("engine"):
                vm = self.vms.find("a")
                await disks_of(self.paths, self.operations).attach_root(job, vm, self.image)

        return self.notes(self.run(lambda: self.operations.begin("vm.start", "vm/a", work)))


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with contextlib.closing(open_database(tmp_path / "db")) as database:
        yield Bench(tmp_path, VmStore(database), Operations(OperationStore(database)))
    assert not list((tmp_path / "s/images").glob(".tmp-*"))


def failed(operation: Operation) -> str:
    assert operation.state is OperationState.FAILED
    assert operation.error is not None
    return str(operation.error["message"])


def test_a_registered_image_has_its_files_where_they_were(bench: Bench) -> None:
    bench.register(boot_args="console=ttyS0", distro="arch")
    image = bench.image
    assert bench.own() == {"image.json"}
    assert {part_path(bench.paths, image, role) for role in image.parts} == {bench.root, bench.kernel, bench.initramfs}
    assert (image.managed, image.distro, image.release) == (False, "arch", "7")
    assert image.boot_args == "console=ttyS0 root=/dev/vda rootfstype=ext4"
    assert bench.root.stat().st_mode & 0o200, "it is not ours to change"
    asyncio.run(verify_image(bench.paths, "mine", Recorder()))


def test_the_same_files_again_change_nothing(bench: Bench) -> None:
    bench.register()
    before = bench.paths.image("mine").metadata.read_bytes()
    (bench.files / "link").symlink_to(bench.root)
    assert "nothing was changed" in bench.notes(bench.register(rootfs=str(bench.files / "link")))
    assert bench.paths.image("mine").metadata.read_bytes() == before


def test_other_files_need_to_be_asked_for(bench: Bench) -> None:
    bench.register()
    bench.kernel = bench.file("bzImage", compressed(vmlinux() + b"another"))
    message = failed(bench.register())
    assert "bzimage: there was none" in message
    assert "kernel: other content" in message
    assert bench.image.parts["kernel"].file.endswith("/vmlinux")
    bench.register(replace=True)
    assert bench.own() == {"image.json", bench.image.parts["kernel"].file}
    bench.kernel = bench.file("bzImage", compressed(vmlinux() + b"yet another"))
    bench.register(replace=True)
    assert len(bench.own()) == 3, "a machine may be about to open the one before"
    sweep_parts(bench.paths)
    assert bench.own() == {"image.json", bench.image.parts["kernel"].file}
    assert part_path(bench.paths, bench.image, "kernel").read_bytes().endswith(b"yet another")


def test_files_that_changed_or_vanished_are_said_with_the_next_step(bench: Bench) -> None:
    bench.register()
    os.utime(bench.root, ns=(1, 1))
    for look in (lambda: find_image(bench.paths, "mine"), lambda: bench.service.promote("mine", PromoteSpec())):
        with pytest.raises(Invalid) as caught:
            look()
        assert f"{bench.root} was changed after it was registered, at 1970-01-01" in caught.value.message
        assert "`banger image register mine`" in caught.value.hint
    assert "have the content that was registered" in bench.notes(bench.again())
    assert bench.image.parts["root"].modified_ns == 1
    with bench.root.open("ab") as file:
        file.write(b"x")
    with pytest.raises(Invalid, match=f"has {bench.root.stat().st_size} bytes, and had"):
        find_image(bench.paths, "mine")
    assert "has another content" in failed(bench.again())
    bench.root.unlink()
    with pytest.raises(Invalid, match=r"root\.ext4 is gone"):
        find_image(bench.paths, "mine")
    assert "cannot be read" in failed(bench.again())


def test_the_same_files_that_were_touched_are_taken_without_being_asked_for(bench: Bench) -> None:
    bench.register()
    os.utime(bench.kernel, ns=(7, 7))
    assert "only their times" in bench.notes(bench.register())
    assert bench.image.parts["kernel"].modified_ns == 7


def test_what_cannot_be_registered_is_refused_before_anything_begins(bench: Bench) -> None:
    make_image(bench.paths, "debian", "")
    disk = bench.paths.vm(VM_ID).root_copy
    disk.parent.mkdir(parents=True)
    shutil.copy(bench.root, disk)
    for kind, match, changes in (
        (Conflict, "banger's own", {"name": "debian"}),
        (Invalid, "not a valid image name", {"name": "Mine!"}),
        (Invalid, "no regular file", {"rootfs": "/"}),
        (Invalid, "not an absolute path", {"kernel": "vmlinuz"}),
        (Invalid, "no kernel was given", {"kernel": None}),
        (Invalid, "belongs to a VM", {"rootfs": str(disk)}),
        (Invalid, "--boot-args", {"boot_args": "a\nb"}),
    ):
        bench.refused(lambda c=changes: bench.service.register(bench.spec(**c)), kind, match)  # type: ignore[misc]
    bench.refused(lambda: bench.service.register(RegisterSpec(name="mine")), NotFound, "no image mine")
    assert bench.operations.all(10) == []


def test_an_initramfs_of_somebody_elses_gives_no_work_disk(bench: Bench) -> None:
    bench.initramfs = bench.file("initrd", archive(init=b"#!/bin/sh"))
    assert "no work disk" in bench.notes(bench.register())
    image = bench.image
    assert image.init_version == 0
    assert asyncio.run(bring_up_to_date(bench.paths, image)) is image
    assert work_size(VmSpec(), image) == 0
    assert work_size(VmSpec(work_disk_bytes=0), image) == 0
    with pytest.raises(Invalid, match="mounts no work disk") as caught:
        work_size(VmSpec(work_disk_bytes=1 << 30), image)
    assert "--initramfs" in caught.value.hint
    assert work_size(VmSpec(), msgspec.structs.replace(image, init_version=1)) == DEFAULT_WORK_DISK_BYTES
    assert root_size(VmSpec(), image) == bench.root.stat().st_size


def test_an_image_that_needs_more_memory_says_so(bench: Bench) -> None:
    bench.register()
    image = msgspec.structs.replace(bench.image, memory_mib=2048)
    check_memory(image, 2048, "")
    with pytest.raises(Invalid, match="needs 2048 MiB of memory, and 1024") as caught:
        check_memory(image, 1024, "choose more")
    assert caught.value.hint == "choose more"


def test_modules_that_the_root_has_not_are_kept_and_come_with_the_copy(bench: Bench) -> None:
    modules = bench.files / "modules"
    (modules / "kernel").mkdir(parents=True)
    (modules / "kernel/virtio_blk.ko").write_bytes(b"\x7fELF-theirs")
    (modules / "modules.dep").write_text("kernel/virtio_blk.ko:\n")
    bench.register(modules=str(modules))
    assert bench.own() == {"image.json", "modules.tar"}
    with tarfile.open(part_path(bench.paths, bench.image, MODULES)) as kept:
        assert {member.name for member in kept if member.isreg()} == {"./kernel/virtio_blk.ko", "./modules.dep"}
    assert "nothing was changed" in bench.notes(bench.register(modules=str(modules)))
    (modules / "kernel/virtio_blk.ko").write_bytes(b"\x7fELF-others")
    assert "modules: other content" in failed(bench.register(modules=str(modules)))
    assert bench.promote("copy").state is OperationState.DONE
    assert find_image(bench.paths, "copy").parts[MODULES].sha256 == bench.image.parts[MODULES].sha256


def test_modules_that_the_root_has_itself_are_not_kept(bench: Bench) -> None:
    bench.root = make_root(bench.files, "with.ext4", **{f"usr__lib__modules__{RELEASE}__modules.dep": "a.ko:\n"})
    modules = bench.files / "modules"
    modules.mkdir()
    (modules / "modules.dep").write_text("")
    bench.register(modules=str(modules))
    assert MODULES not in bench.image.parts


@needs_qemu_img
def test_promoting_twice_is_promoting_once_and_vms_follow(bench: Bench) -> None:
    bench.register()
    vm = bench.vm()
    promoted = bench.promote()
    assert promoted.state is OperationState.DONE, promoted.error
    image = bench.image
    assert (image.managed, set(image.parts)) == (True, {"root", "kernel", "initramfs", WORK_SEED})
    assert bench.own() == {"image.json", "root.ext4", "vmlinux", "initramfs.cpio", "work-seed.ext4"}
    assert not (bench.paths.image("mine").root.stat().st_mode & 0o222)
    assert image.seed_key
    before = bench.paths.image("mine").metadata.read_bytes()
    assert "nothing was changed" in bench.notes(bench.promote())
    assert bench.paths.image("mine").metadata.read_bytes() == before
    shutil.rmtree(bench.files)
    asyncio.run(verify_image(bench.paths, "mine", Recorder()))

    assert bench.behind() == str(bench.root), "nobody changed it while it was not started"
    check = CheckService(bench.paths, bench.vms, bench.operations, bench.admission)
    (found,) = bench.run(lambda: check.check(vm.name)).result
    assert found["ok"], found
    assert bench.behind() == str(bench.root), "a check changes nothing"
    assert f"lay over {bench.root}" in bench.start()
    assert bench.behind() == str(bench.paths.image("mine").root)
    assert bench.start() == ""
    (found,) = bench.run(lambda: check.check(vm.name)).result
    assert found == {"part": "root disk", "ok": True, "notes": []}


@needs_qemu_img
def test_files_that_moved_are_followed_as_well(bench: Bench) -> None:
    bench.register()
    bench.vm()
    old, bench.root = bench.root, bench.root.rename(bench.files / "moved.ext4")
    assert "root: it was" in failed(bench.register())
    bench.register(replace=True)
    assert bench.image.parts["root"].formerly == (str(old),)
    assert f"lay over {old}" in bench.start()
    assert bench.behind() == str(bench.root)


@needs_qemu_img
def test_a_root_under_a_vms_disk_cannot_become_another_one(bench: Bench) -> None:
    bench.register()
    bench.vm()
    bench.root = make_root(bench.files, "other.ext4")
    assert "the disks of a lie over the one it has" in failed(bench.register(replace=True))
    bench.vms.remove(VM_ID)
    bench.register(replace=True)
    assert bench.image.parts["root"].formerly == ()


@needs_qemu_img
def test_an_overlay_that_names_what_the_image_never_had_is_left_alone(bench: Bench) -> None:
    bench.register()
    bench.vm()
    bench.promote()
    overlay = bench.paths.vm(VM_ID).root_overlay
    overlay.unlink()
    asyncio.run(create_root_overlay(bench.kernel, overlay))
    assert bench.start() == ""
    assert bench.behind() == str(bench.kernel)


def test_another_name_leaves_the_registered_image_as_it_was(bench: Bench) -> None:
    bench.register()
    before = bench.paths.image("mine").metadata.read_bytes()
    bench.promote("new")
    new = find_image(bench.paths, "new")
    assert (new.managed, new.init_version, new.parts["root"].formerly) == (True, bench.image.init_version, ())
    assert bench.paths.image("mine").metadata.read_bytes() == before
    assert "is a copy of mine already" in bench.notes(bench.promote("new"))
    make_image(bench.paths, "debian", "")
    bench.refused(lambda: bench.service.promote("mine", PromoteSpec(new="debian")), Conflict, "debian already")
    bench.refused(lambda: bench.service.promote("new", PromoteSpec(new="other")), Conflict, "banger's own")


def test_what_is_not_what_was_registered_is_not_promoted(bench: Bench) -> None:
    bench.register()
    seen = bench.initramfs.stat()
    bench.initramfs.write_bytes(OURS[:-1] + b"x")
    os.utime(bench.initramfs, ns=(seen.st_atime_ns, seen.st_mtime_ns))
    assert "initrd has another content" in failed(bench.promote())
    assert not bench.image.managed
    assert bench.own() == {"image.json"}


@pytest.mark.parametrize("verb", ["register", "promote"])
def test_a_cancelled_one_leaves_nothing(bench: Bench, verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if verb == "promote":
        bench.register()

    async def never(*_: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(registration, "measure_elsewhere" if verb == "register" else "become_managed", never)

    async def main() -> Operation:
        spec = bench.spec()
        begun = bench.service.register(spec) if verb == "register" else bench.service.promote("mine", PromoteSpec())
        wanted = "digests" if verb == "register" else "publish"
        async for event in bench.operations.follow(begun.id):
            if event.kind is EventKind.STAGE_BEGIN and event.data["stage"] == wanted:
                bench.operations.cancel(begun.id)
        return bench.operations.find(begun.id)

    assert asyncio.run(main()).state is OperationState.CANCELLED
    if verb == "register":
        assert not bench.paths.image("mine").directory.exists()
    else:
        assert bench.own() == {"image.json"}
        assert not bench.image.managed


def test_a_crash_before_image_json_is_replaced_leaves_the_registered_image(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.register()
    rename = Path.rename

    def crash(self: Path, target: Path) -> Path:
        if self.name == "image.json":
            raise OSError(5, "the power went")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", crash)
    assert "the power went" in failed(bench.promote())
    monkeypatch.undo()
    assert not bench.image.managed
    assert "root.ext4" in bench.own()
    asyncio.run(sweep(bench.paths))
    sweep_parts(bench.paths)
    assert bench.own() == {"image.json"}
    assert bench.promote().state is OperationState.DONE
    assert bench.image.managed


def test_what_only_its_owner_may_read_is_verified_without_being_lent(bench: Bench) -> None:
    bench.register()
    bench.root.chmod(0o600)
    if os.geteuid() == 0:
        os.chown(bench.root, 12345, 12345)
    owner = bench.root.stat().st_uid
    asyncio.run(verify_image(bench.paths, "mine", Recorder()))
    assert (bench.root.stat().st_uid, bench.root.stat().st_mode & 0o777) == (owner, 0o600)
