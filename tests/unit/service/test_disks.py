"""Sizes that are asked for, and what a crash left of a VM's disks."""

import asyncio
import contextlib
from pathlib import Path

import msgspec
import pytest

from banger.guest.channel import Guest
from banger.images.catalog import find_image
from banger.jobs.operations import Operations
from banger.model.errors import Conflict, HostRequirement, Invalid, Unsupported
from banger.model.guest import Grown
from banger.model.image import Image, ImagePart
from banger.model.operation import EventKind
from banger.model.sizes import GIB, MIB
from banger.model.vm import VmChange, VmSpec
from banger.paths import Paths
from banger.service.disks import Disks, changed_to, check_growth, root_size, work_size
from banger.storage.work_disks import enlarge_work_disk
from banger.store.db import open_database
from banger.store.operations import OperationStore
from banger.system.ext4 import GROWABLE, make_ext4
from tests.unit.images.tiny import make_image, needs_e2fsprogs
from tests.unit.service.pretend import VM_ID, disks_of, paths_in
from tests.unit.test_store import make_vm

VM = msgspec.structs.replace(make_vm("a", VM_ID), image="debian", disk_bytes=4 * GIB, work_disk_bytes=GIB)


def image(name: str = "debian", root: int = 4 * GIB, seed: int = 64 * MIB, *, opencode: bool = False) -> Image:
    return Image(
        name=name,
        distro="debian",
        release="12",
        kernel_release="6",
        boot_args="",
        parts={"root": ImagePart("root.ext4", root, ""), "work-seed": ImagePart("work-seed.ext4", seed, "")},
        packages=0,
        created_at="",
        origin="",
        needs_acpi=True,
        has_opencode=opencode,
    )


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    made = paths_in(tmp_path)
    made.vm(VM_ID).state.mkdir(parents=True)
    return made


@pytest.mark.parametrize(
    ("asked", "given"), [({}, (4 * GIB, 8 * GIB)), ({"disk_bytes": 6 * GIB, "work_disk_bytes": GIB}, (6 * GIB, GIB))]
)
def test_disks_have_the_sizes_that_are_asked_for(asked: dict[str, int], given: tuple[int, int]) -> None:
    spec = msgspec.convert(asked, VmSpec)
    spec.check(host_memory_mib=4096)
    assert (root_size(spec, image()), work_size(spec, image())) == given


def test_a_vm_may_do_without_a_work_disk_and_an_images_large_home_makes_it_larger() -> None:
    assert work_size(VmSpec(work_disk_bytes=0), image()) == 0
    assert work_size(VmSpec(), image(seed=10 * GIB)) == 10 * GIB


def test_disks_that_are_too_small_are_refused_with_the_least_size() -> None:
    with pytest.raises(Invalid, match="smaller") as refused:
        root_size(VmSpec(disk_bytes=GIB), image())
    assert "4096M" in refused.value.hint
    with pytest.raises(Invalid, match="does not hold") as refused:
        work_size(VmSpec(work_disk_bytes=GIB), image(seed=2 * GIB))
    assert "2048M" in refused.value.hint


@pytest.mark.parametrize(
    "asked",
    [
        {"disk_bytes": 1},
        {"disk_bytes": GIB + 1},
        {"disk_bytes": 1 << 60},
        {"work_disk_bytes": MIB},
        {"work_disk_bytes": GIB, "volume": "v"},
        {"volume": "../v"},
    ],
)
def test_impossible_disks_are_refused(asked: dict[str, object]) -> None:
    with pytest.raises(Invalid) as refused:
        msgspec.convert(asked, VmSpec).check(host_memory_mib=4096)
    assert refused.value.hint


def test_a_change_must_change_something_that_can_be() -> None:
    for change in (VmChange(), VmChange(image="A"), VmChange(work_disk_bytes=1)):
        with pytest.raises(Invalid):
            change.check()


def test_a_work_disk_grows_and_never_shrinks(paths: Paths) -> None:
    disk = paths.vm(VM_ID).work_disk
    with pytest.raises(HostRequirement, match="missing"):
        check_growth(VM, 2 * GIB, disk)
    with disk.open("wb") as file:
        file.truncate(GIB)
    check_growth(VM, GIB, disk)
    check_growth(VM, 2 * GIB, disk)
    with pytest.raises(Conflict, match="smaller"):
        check_growth(VM, GIB - MIB, disk)
    with pytest.raises(Conflict, match="no work disk"):
        check_growth(msgspec.structs.replace(VM, work_disk_bytes=0), GIB, disk)


def test_opencode_follows_the_image_unless_it_was_declined(paths: Paths) -> None:
    with_it = image("coding", 5 * GIB, opencode=True)
    changed = changed_to(VM, with_it, paths)
    assert (changed.image, changed.disk_bytes, changed.opencode) == ("coding", 5 * GIB, True)
    larger = msgspec.structs.replace(VM, disk_bytes=9 * GIB)
    assert changed_to(larger, image("small", GIB), paths).disk_bytes == 9 * GIB


def test_a_crash_while_the_image_is_changed_leaves_the_old_root_or_the_new_one(paths: Paths) -> None:
    with contextlib.closing(open_database(paths.database)) as database:
        disks, where = disks_of(paths, Operations(OperationStore(database))), paths.vm(VM_ID)
        where.root_copy.write_text("old")
        where.next_root("other", "root.qcow2").write_text("new")
        (where.state / ".work.ext4.0123").touch()
        (where.state / ".check-0123.ext4").touch()
        disks.settle(VM)
        assert [path.name for path in where.state.iterdir()] == ["root.ext4"]

        where.next_root("other", "root.qcow2").write_text("new")
        disks.settle(msgspec.structs.replace(VM, image="other"))
        assert [path.name for path in where.state.iterdir()] == ["root.qcow2"]
        assert where.root_disk.read_text() == "new"


@needs_e2fsprogs
def test_a_guest_that_cannot_grow_its_filesystem_runs_all_the_same_and_it_is_told(
    paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A person could not start the machine ever again: a disk does not shrink."""

    async def refuses(*_: object, **__: object) -> Grown:
        raise Unsupported("the image's agent is too old to grow a filesystem")

    monkeypatch.setattr(Guest, "grow", refuses)
    paths.runtime.mkdir(exist_ok=True)
    make_image(paths, "debian", "")
    vm = msgspec.structs.replace(VM, disk_bytes=find_image(paths, "debian").parts["root"].bytes)

    async def main(operations: Operations, disks: Disks) -> tuple[list[str], str]:
        await make_ext4(paths.vm(VM_ID).work_disk, 64 * MIB, label="work", options=GROWABLE)
        enlarge_work_disk(paths.vm(VM_ID).work_disk, 128 * MIB)
        told = await operations.wait(operations.begin("vm.start", "vm/a", lambda job: disks.grow_or_tell(job, vm)).id)
        asked = await operations.wait(operations.begin("vm.set", "vm/a", lambda job: disks.grow(job, vm)).id)
        notes = [event.data["text"] for event in operations.events(told.id) if event.kind is EventKind.NOTE]
        return notes, str(asked.error and asked.error["message"])

    with contextlib.closing(open_database(paths.database)) as database:
        operations = Operations(OperationStore(database))
        notes, error = asyncio.run(main(operations, disks_of(paths, operations)))
    assert notes == ["the image's agent is too old to grow a filesystem: it stays smaller than its disk"]
    assert "too old" in error
