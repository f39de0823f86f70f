"""Volumes, as the service offers them: attached to a VM that is stopped, made of one that is deleted, never lost."""

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from banger.jobs.operations import Job, Operations
from banger.model.errors import Busy, Conflict, Invalid, NotFound
from banger.model.operation import EventKind, Operation, OperationState
from banger.model.vm import VmState
from banger.model.volume import Volume
from banger.paths import DISKS
from banger.service.reconcile import Reconciler
from banger.service.volumes import VolumeService
from banger.storage import volumes
from banger.store.db import open_database
from banger.store.operations import OperationStore
from banger.store.vms import VmStore
from tests.unit.service import test_vms
from tests.unit.service.operating import Operating
from tests.unit.test_store import make_vm

VM_ID = "0123456789ab"
SIZE = 4096


class Bench(Operating, test_vms.Bench):
    """With volumes; the VM `a` is stopped."""

    def __init__(self, directory: Path, vms: VmStore, operations: Operations) -> None:
        super().__init__(directory, vms, operations)
        self.volumes = VolumeService(self.paths, vms, operations, self.service.document)
        self.paths.vm(VM_ID).state.mkdir(parents=True)
        self.change(state=VmState.STOPPED, process=None)

    def change(self, **changes: object) -> None:
        self.vms.update(msgspec.structs.replace(self.vm(), **changes))

    def give_work_disk(self, content: bytes = b"precious") -> None:
        self.paths.vm(VM_ID).work_disk.write_bytes(content.ljust(SIZE))
        self.change(work_disk_bytes=SIZE)

    def volume(self, name: str = "notes", content: bytes = b"precious") -> Volume:
        disk = self.paths.state / "disk"
        disk.write_bytes(content.ljust(SIZE))
        facts = Volume(name=name, image="alpine", vm="old", created_at="2026-01-02T03:04:05+00:00")
        return volumes.keep(self.paths, disk, facts)

    def settle(self) -> None:
        """What the daemon does at its start."""
        reconciler = Reconciler(self.paths, self.vms, self.operations, self.service._lifecycle, self.service._monitor)

        async def main() -> None:
            await self.volumes.sweep()
            await reconciler.run()

        asyncio.run(main())


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with contextlib.closing(open_database(tmp_path / "db")) as database:
        yield Bench(tmp_path, VmStore(database), Operations(OperationStore(database)))


def test_what_is_told_of_a_volume(bench: Bench) -> None:
    bench.volume()
    (told,) = bench.volumes.list()
    assert told == bench.volumes.show("notes")
    assert (told["name"], told["bytes"], told["vm"], told["image"]) == ("notes", SIZE, "old", "alpine")
    assert told["allocated_bytes"] >= SIZE


def test_attached_it_is_the_vms_work_disk_and_no_volume(bench: Bench) -> None:
    bench.volume()
    told = bench.done(lambda: bench.volumes.attach("notes", "a"))
    assert (told["name"], told["work_disk_bytes"]) == ("a", SIZE)
    assert bench.vm().work_disk_bytes == SIZE
    assert bench.paths.vm(VM_ID).work_disk.read_bytes().startswith(b"precious")
    assert bench.volumes.list() == []


@pytest.mark.parametrize(
    ("state", "hint"),
    [
        (VmState.RUNNING, "banger vm stop a"),
        (VmState.PAUSED, "banger vm stop a"),
        (VmState.DELETING, "banger vm show a"),
    ],
)
def test_a_vm_that_is_not_stopped_gets_none(bench: Bench, state: VmState, hint: str) -> None:
    bench.volume()
    bench.change(state=state)
    error = bench.refused(lambda: bench.volumes.attach("notes", "a"), Conflict, state.value)
    assert error.hint == hint
    assert bench.volumes.list()


def test_a_failed_vm_counts_as_stopped(bench: Bench) -> None:
    bench.volume()
    bench.change(state=VmState.FAILED)
    bench.done(lambda: bench.volumes.attach("notes", "a"))
    assert bench.vm().state is VmState.FAILED


def test_a_vm_that_has_a_work_disk_keeps_it(bench: Bench) -> None:
    bench.volume()
    bench.give_work_disk(b"mine")
    error = bench.refused(lambda: bench.volumes.attach("notes", "a"), Conflict, "has a work disk already")
    assert "vm create --volume notes" in error.hint
    bench.change(work_disk_bytes=0)  # a file that no record knows of is one all the same
    bench.refused(lambda: bench.volumes.attach("notes", "a"), Conflict, "has a work disk already")
    assert bench.paths.vm(VM_ID).work_disk.read_bytes().startswith(b"mine")


def test_what_is_not_there_is_said(bench: Bench) -> None:
    bench.refused(lambda: bench.volumes.attach("notes", "a"), NotFound, "no volume notes")
    bench.volume()
    bench.refused(lambda: bench.volumes.attach("notes", "b"), NotFound, "no VM")
    bench.refused(lambda: bench.volumes.delete("nots"), NotFound, "no volume nots")
    bench.refused(lambda: bench.volumes.delete("../vms"), Invalid, "not a valid")


def test_nothing_else_works_on_the_vm_or_the_volume_meanwhile(bench: Bench) -> None:
    bench.volume()

    async def main() -> None:
        begun = bench.volumes.attach("notes", "a")
        others: tuple[Callable[[], Operation], ...] = (
            lambda: bench.volumes.attach("notes", "a"),
            lambda: bench.volumes.delete("notes"),
            lambda: bench.service.delete("a"),
        )
        for other in others:
            with pytest.raises(Busy) as error:
                other()
            assert error.value.details["operation"] == begun.id
        assert (await bench.operations.wait(begun.id)).state is OperationState.DONE
        await bench.operations.wait(bench.service.delete("a").id)

    asyncio.run(main())


def test_a_vm_that_is_busy_gets_none(bench: Bench) -> None:
    bench.volume()

    async def main() -> None:
        async def work(_: Job) -> None:
            await asyncio.Event().wait()

        bench.operations.begin("vm.start", "vm/a", work)
        with pytest.raises(Busy):
            bench.volumes.attach("notes", "a")
        await bench.operations.close()

    asyncio.run(main())


def test_cancelled_it_is_a_volume_again(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = bench.volume()
    take = volumes.take

    async def main() -> None:
        loop, begun = asyncio.get_running_loop(), asyncio.Event()

        def taking(*given: Any) -> None:
            loop.call_soon_threadsafe(begun.set)
            take(*given)

        monkeypatch.setattr(volumes, "take", taking)
        operation = bench.volumes.attach("notes", "a")
        await begun.wait()
        bench.operations.cancel(operation.id)
        assert (await bench.operations.wait(operation.id)).state is OperationState.CANCELLED

    asyncio.run(main())
    assert volumes.find_volume(bench.paths, "notes") == facts
    assert not bench.paths.vm(VM_ID).work_disk.exists()
    assert bench.vm().work_disk_bytes == 0


def test_a_daemon_that_died_before_it_recorded_the_disk_finds_it(bench: Bench) -> None:
    bench.volume()
    volumes.take(bench.paths, "notes", bench.paths.vm(VM_ID).work_disk)
    assert bench.vm().work_disk_bytes == 0
    bench.settle()
    assert (bench.vm().work_disk_bytes, bench.vm().state) == (SIZE, VmState.STOPPED)


def test_delete_removes_volumes_damaged_ones_too(bench: Bench) -> None:
    bench.volume()
    bench.volume("other")
    bench.paths.volume("other").metadata.write_bytes(b"{")
    assert bench.done(lambda: bench.volumes.delete("notes")) is None
    assert bench.done(lambda: bench.volumes.delete("other")) is None
    assert list(bench.paths.volumes.iterdir()) == []


def test_deleting_a_vm_keeps_its_work_disk_when_asked(bench: Bench) -> None:
    bench.give_work_disk()
    told = bench.done(lambda: bench.service.delete("a", keep_work_disk=True))
    assert (told["name"], told["vm"], told["image"], told["bytes"]) == ("a", "a", "debian", SIZE)
    assert bench.paths.volume("a").disk.read_bytes().startswith(b"precious")
    assert bench.vms.all() == []
    assert not bench.paths.vm(VM_ID).state.exists()


def test_deleting_a_vm_deletes_its_work_disk_otherwise(bench: Bench) -> None:
    bench.give_work_disk()
    assert bench.done(lambda: bench.service.delete("a")) is None
    assert bench.volumes.list() == []
    assert not bench.paths.vm(VM_ID).state.exists()


def test_a_volume_of_the_vms_name_stays_and_the_new_name_is_told(bench: Bench) -> None:
    bench.volume("a", b"older")
    bench.give_work_disk()
    ended = bench.run(lambda: bench.service.delete("a", keep_work_disk=True))
    assert ended.result["name"] == "a-2"
    notes = [event.data["text"] for event in bench.operations.events(ended.id) if event.kind is EventKind.NOTE]
    assert any("a-2" in note for note in notes)
    assert bench.paths.volume("a").disk.read_bytes().startswith(b"older")


def test_two_vms_that_go_at_once_are_promised_two_names(bench: Bench) -> None:
    bench.volume("a")
    other = msgspec.structs.replace(make_vm("b", "b" * 12), state=VmState.DELETING, keep_work_disk="a-2", process=None)
    bench.vms.add(other)
    bench.give_work_disk()
    assert bench.done(lambda: bench.service.delete("a", keep_work_disk=True))["name"] == "a-3"


def test_without_a_work_disk_there_is_none_to_keep(bench: Bench) -> None:
    error = bench.refused(lambda: bench.service.delete("a", keep_work_disk=True), Invalid, "no work disk")
    assert "--keep-work-disk" in error.hint
    assert bench.vm().state is VmState.STOPPED


def test_a_deletion_that_could_not_keep_the_disk_removes_nothing_and_can_be_repeated(bench: Bench) -> None:
    bench.give_work_disk()
    bench.paths.volumes.touch()  # in the way of the directory
    ended = bench.run(lambda: bench.service.delete("a", keep_work_disk=True))
    assert ended.state is OperationState.FAILED
    bench.settle()
    assert bench.vm().state is VmState.FAILED
    assert "could not be made a volume" in bench.vm().problem
    assert bench.paths.vm(VM_ID).work_disk.exists()
    bench.paths.volumes.unlink()
    assert bench.done(lambda: bench.service.delete("a", keep_work_disk=True))["name"] == "a"


def doomed(bench: Bench, state: VmState = VmState.DELETING) -> None:
    bench.give_work_disk()
    bench.change(state=state, keep_work_disk="a")


def test_a_deletion_that_was_killed_is_completed_and_keeps_the_disk(bench: Bench) -> None:
    doomed(bench)
    bench.settle()
    assert bench.vms.all() == []
    assert bench.paths.volume("a").disk.read_bytes().startswith(b"precious")
    assert not any((bench.paths.vm(VM_ID).state / name).exists() for name in DISKS)


def test_one_that_was_killed_half_way_through_keeping_keeps_one_disk(bench: Bench) -> None:
    doomed(bench)
    (left := bench.paths.volumes / ".tmp-1").mkdir(parents=True)
    facts = Volume(name="a", image="debian", vm="a", created_at="2026-01-02T03:04:05+00:00")
    (left / "volume.json").write_bytes(msgspec.json.encode(facts))
    bench.paths.vm(VM_ID).work_disk.rename(left / "work.ext4")
    bench.settle()
    assert bench.vms.all() == []
    assert [volume["name"] for volume in bench.volumes.list()] == ["a"]


def test_a_vm_that_was_being_made_with_a_volume_gives_it_back(bench: Bench) -> None:
    doomed(bench, VmState.CREATING)
    bench.settle()
    assert bench.vms.all() == []
    assert [volume["name"] for volume in bench.volumes.list()] == ["a"]
