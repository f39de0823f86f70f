"""Capacity over a real store and fabricated files; and who is let in when the disk is nearly full."""

import asyncio
import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from banger.config import Settings
from banger.jobs.operations import Operations
from banger.model.capacity import Capacity, Filesystem
from banger.model.errors import HostRequirement
from banger.model.vm import VmSpec, VmState
from banger.paths import Paths
from banger.service.admission import Admission
from banger.service.capacity import CapacityService
from banger.storage.overlays import create_root_raw
from banger.store.db import open_database
from banger.store.operations import OperationStore
from banger.store.vms import VmStore
from tests.unit.images.test_catalog import make as make_image
from tests.unit.service.test_vms import Bench
from tests.unit.storage.test_usage import written
from tests.unit.test_store import make_vm

MIB, GIB = 1 << 20, 1 << 30
A, B = "aaaaaaaaaaaa", "bbbbbbbbbbbb"


class Disk:
    """A filesystem with as much free as a test says."""

    def __init__(self, free: int) -> None:
        self.free = free

    def __call__(self, _: Path) -> Filesystem:
        return Filesystem(total=10 * GIB, used=10 * GIB - self.free, free=self.free)


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    found = Paths(tmp_path / "s", tmp_path / "r", tmp_path / "c")
    found.state.mkdir()
    return found


@pytest.fixture
def vms(tmp_path: Path) -> Iterator[VmStore]:
    with contextlib.closing(open_database(tmp_path / "db")) as database:
        yield VmStore(database)


def add(vms: VmStore, paths: Paths, name: str, vm_id: str, kib: int) -> int:
    """A VM with an overlay of so many KiB; what that takes."""
    vms.add(make_vm(name, vm_id))
    paths.vm(vm_id).state.mkdir(parents=True)
    return written(paths.vm(vm_id).root_overlay, kib)


def show(paths: Paths, vms: VmStore) -> Capacity:
    return asyncio.run(CapacityService(paths, Settings(), vms, Disk(5 * GIB)).show())


def test_nothing_takes_nothing(paths: Paths, vms: VmStore) -> None:
    found = show(paths, vms)
    assert (found.vms, found.images, found.cpu.reserved, found.memory.reserved_mib) == ((), (), 0, 0)
    assert (found.disk.path, found.disk.free_bytes, found.disk.room_bytes) == (str(paths.state), 5 * GIB, 3 * GIB)
    assert found.cpu.host >= 1
    assert found.memory.host_mib > 100


def test_vms_and_images_take_their_blocks(paths: Paths, vms: VmStore) -> None:
    make_image(paths, "debian")
    a, b = add(vms, paths, "one", A, 200), add(vms, paths, "two", B, 100)
    found = show(paths, vms)
    assert {vm.name: vm.allocated_bytes for vm in found.vms} == {"one": a, "two": b}
    assert found.disk.vms_bytes == found.total.allocated_bytes == found.total.own_bytes == a + b
    assert found.disk.images_bytes == found.images[0].allocated_bytes > 0
    assert (found.cpu.reserved, found.memory.reserved_mib) == (4, 1024)


def test_an_image_that_is_being_made_takes_room_too(paths: Paths, vms: VmStore) -> None:
    (paths.images / ".tmp-0123").mkdir(parents=True)
    taken = written(paths.images / ".tmp-0123" / "root.ext4", 100)
    assert show(paths, vms).disk.images_bytes == taken


def test_a_work_disk_is_its_vms_and_as_a_volume_nobodys(paths: Paths, vms: VmStore) -> None:
    root = add(vms, paths, "one", A, 100)
    vms.update(msgspec.structs.replace(vms.find("one"), disk_bytes=4 * GIB, work_disk_bytes=8 * GIB))
    work, kept = written(paths.vm(A).work_disk, 60), paths.volume("kept")
    found = show(paths, vms)
    assert (found.vms[0].allocated_bytes, found.disk.vms_bytes, found.disk.volumes_bytes) == (
        root + work,
        root + work,
        0,
    )
    assert found.disk.promised_bytes == 12 * GIB
    kept.directory.mkdir(parents=True)
    paths.vm(A).work_disk.rename(kept.disk)
    found = show(paths, vms)
    assert (found.disk.vms_bytes, found.disk.volumes_bytes) == (root, work)
    assert [(row.name, row.allocated_bytes, row.shared_bytes) for row in found.volumes] == [("kept", work, 0)]


def test_a_disk_that_is_being_copied_is_its_vms_already(paths: Paths, vms: VmStore) -> None:
    vms.add(msgspec.structs.replace(make_vm("one", A), state=VmState.CREATING, process=None))
    paths.vm(A).state.mkdir(parents=True)
    taken = written(paths.vm(A).state / ".root.ext4.0123abcd", 100)
    assert [vm.allocated_bytes for vm in show(paths, vms).vms] == [taken]


def test_a_vm_without_files_and_one_half_deleted(paths: Paths, vms: VmStore) -> None:
    taken = add(vms, paths, "one", A, 100)
    vms.add(msgspec.structs.replace(make_vm("two", B), state=VmState.DELETING, process=None))
    found = show(paths, vms)
    assert [(vm.allocated_bytes, vm.reserves) for vm in found.vms] == [(taken, True), (0, False)]


def test_a_vm_that_goes_while_it_is_measured(paths: Paths, vms: VmStore) -> None:
    add(vms, paths, "one", A, 100)
    kept = add(vms, paths, "two", B, 100)
    service = CapacityService(paths, Settings(), vms, Disk(5 * GIB))

    async def main() -> Capacity:
        asking = asyncio.ensure_future(service.show())
        await asyncio.sleep(0)
        shutil.rmtree(paths.vm(A).state)
        vms.remove(A)
        return await asking

    found = asyncio.run(main())
    assert found.vms[-1].allocated_bytes == kept
    assert [vm.name for vm in show(paths, vms).vms] == ["two"]


# admission


@pytest.mark.parametrize(("free", "needed"), [(2 * GIB, 0), (3 * GIB, GIB), (10 * GIB, 8 * GIB)])
def test_who_leaves_the_reserve_is_let_in(paths: Paths, free: int, needed: int) -> None:
    Admission(paths, Settings(), Disk(free)).check(needed)


@pytest.mark.parametrize(("free", "needed"), [(2 * GIB - 1, 0), (3 * GIB, GIB + 1), (0, 0)])
def test_who_would_not_is_told_what_is_free_the_reserve_and_the_next_step(paths: Paths, free: int, needed: int) -> None:
    with pytest.raises(HostRequirement) as caught:
        Admission(paths, Settings(), Disk(free)).check(needed)
    assert "2 GiB must stay free" in caught.value.message
    assert str(paths.state) in caught.value.message
    for step in ("`banger capacity`", "delete VMs", "disk_reserve_mib"):
        assert step in caught.value.hint
    assert (caught.value.details["free_bytes"], caught.value.details["needed_bytes"]) == (free, needed)
    assert caught.value.exit_code == 5


def test_no_reserve_asks_nothing(paths: Paths) -> None:
    Admission(paths, Settings(disk_reserve_mib=0), Disk(0)).check(GIB)


def test_room_is_given_once(paths: Paths) -> None:
    admission = Admission(paths, Settings(), Disk(4 * GIB))
    with admission.room(GIB):
        admission.check(GIB)
        with pytest.raises(HostRequirement, match="1 GiB is being written"), admission.room(GIB + 1):
            raise AssertionError("it was let in")
    with admission.room(2 * GIB):
        pass


def test_room_is_given_back_after_a_failure(paths: Paths) -> None:
    admission = Admission(paths, Settings(), Disk(4 * GIB))
    with pytest.raises(ValueError, match="broke"), admission.room(2 * GIB):
        raise ValueError("broke")
    admission.check(2 * GIB)


@pytest.fixture
def disk() -> Disk:
    return Disk(GIB)


@pytest.fixture
def bench(tmp_path: Path, disk: Disk) -> Iterator[Bench]:
    with contextlib.closing(open_database(tmp_path / "db")) as database:
        made = Bench(tmp_path, VmStore(database), Operations(OperationStore(database)), disk)
        make_image(made.paths, "debian")
        yield made


def test_create_is_refused_before_anything_is_made(bench: Bench) -> None:
    with pytest.raises(HostRequirement, match="1 GiB is free"):
        bench.service.create(VmSpec(name="new"))
    assert [vm.name for vm in bench.vms.all()] == ["a"]
    assert bench.operations.all(10) == []


def test_start_is_refused_and_the_vm_stays_stopped(bench: Bench) -> None:
    bench.vms.update(msgspec.structs.replace(bench.vm(), state=VmState.STOPPED, process=None))
    with pytest.raises(HostRequirement):
        bench.service.start("a")
    assert bench.vm().state is VmState.STOPPED


def test_restart_is_refused_and_the_vm_runs_on(bench: Bench) -> None:
    with pytest.raises(HostRequirement):
        bench.service.restart("a", force=True)
    assert bench.vm().state is VmState.RUNNING
    assert bench.operations.all(10) == []


class Told:
    """What long work tells; nobody listens."""

    def stage(self, name: str, *, deadline_s: float | None = None) -> contextlib.AbstractAsyncContextManager[None]:
        return contextlib.nullcontext()

    def progress(self, done: int, total: int | None, unit: str) -> None:
        pass

    def note(self, text: str) -> None:
        pass


def test_a_full_copy_is_refused_when_it_would_take_the_reserve(paths: Paths, tmp_path: Path) -> None:
    base, copy, changes = (tmp_path / name for name in ("base.ext4", "root.ext4", "root.cow"))
    written(base, 1024)
    disk = Disk(2 * GIB + MIB // 2)
    admission = Admission(paths, Settings(), disk)
    admission.check()
    shares = False
    try:
        asyncio.run(create_root_raw("0123456789ab", base, copy, changes, None, Told(), admission.room))
        shares = True
    except HostRequirement:
        pass
    if shares:
        pytest.skip("this filesystem shares blocks: a copy takes none")
    assert sorted(path.name for path in tmp_path.glob("*.ext4")) == ["base.ext4"]
    assert not list(tmp_path.glob(".root*"))
    disk.free = 3 * GIB
    asyncio.run(create_root_raw("0123456789ab", base, copy, changes, None, Told(), admission.room))
    assert copy.read_bytes() == base.read_bytes()
