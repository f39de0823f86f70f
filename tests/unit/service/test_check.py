"""vm check, as the service offers it: on a stopped VM, its disks told one by one."""

import asyncio
import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from banger.config import Settings
from banger.jobs.operations import Operations
from banger.model.errors import Busy, Conflict, HostRequirement, NotFound
from banger.model.operation import OperationState
from banger.model.vm import VmState
from banger.service.admission import Admission
from banger.service.check import CheckService
from banger.storage.overlays import create_root_overlay
from banger.store.db import open_database
from banger.store.operations import OperationStore
from banger.store.vms import VmStore
from banger.system.ext4 import make_ext4
from tests.unit.service import test_volumes

MIB = 1024 * 1024
pytestmark = pytest.mark.skipif(
    not all(shutil.which(name) for name in ("qemu-img", "mke2fs")), reason="needs qemu-utils and e2fsprogs"
)


class Bench(test_volumes.Bench):
    """The VM `a` has a root disk over an image."""

    def __init__(self, directory: Path, vms: VmStore, operations: Operations) -> None:
        super().__init__(directory, vms, operations)
        self.check = CheckService(self.paths, vms, operations, Admission(self.paths, Settings(disk_reserve_mib=0)))
        self.disks = self.paths.vm(test_volumes.VM_ID)
        base = self.paths.image("debian").root
        base.parent.mkdir(parents=True)
        asyncio.run(make_ext4(base, 16 * MIB, label="root"))
        asyncio.run(create_root_overlay(base, self.disks.root_overlay))


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with contextlib.closing(open_database(tmp_path / "db")) as database:
        yield Bench(tmp_path, VmStore(database), Operations(OperationStore(database)))


def test_each_disk_is_told(bench: Bench) -> None:
    assert bench.done(lambda: bench.check.check("a")) == [{"part": "root disk", "ok": True, "notes": []}]
    shutil.copy(bench.paths.image("debian").root, bench.disks.work_disk)
    parts = bench.done(lambda: bench.check.check("a"))
    assert [(part["part"], part["ok"]) for part in parts] == [("root disk", True), ("work disk", True)]
    assert not list(bench.disks.state.glob(".*"))


def test_damage_is_a_result_and_every_disk_is_looked_at(bench: Bench) -> None:
    bench.disks.root_overlay.write_bytes(b"x")
    bench.give_work_disk()
    ended = bench.run(lambda: bench.check.check("a"))
    assert ended.state is OperationState.DONE
    assert [stage.name for stage in ended.stages] == ["root disk", "work disk"]
    assert [part["ok"] for part in ended.result] == [False, False]


def test_a_work_disk_that_is_gone_is_damage(bench: Bench) -> None:
    bench.change(work_disk_bytes=MIB)
    _, work = bench.done(lambda: bench.check.check("a"))
    assert (work["ok"], work["notes"]) == (False, ["work.ext4 is missing"])


def test_a_root_that_was_copied_is_checked_as_it_is(bench: Bench) -> None:
    bench.disks.root_overlay.rename(bench.disks.root_changes)
    (part,) = bench.done(lambda: bench.check.check("a"))
    assert part["ok"]
    assert "not looked at" in part["notes"][0]
    shutil.copy(bench.paths.image("debian").root, bench.disks.root_copy)
    assert bench.done(lambda: bench.check.check("a")) == [{"part": "root disk", "ok": True, "notes": []}]


@pytest.mark.parametrize("state", [VmState.RUNNING, VmState.PAUSED])
def test_a_vm_that_runs_is_not_checked(bench: Bench, state: VmState) -> None:
    bench.change(state=state)
    error = bench.refused(lambda: bench.check.check("a"), Conflict, "must be stopped")
    assert error.hint == "banger vm stop a"
    bench.refused(lambda: bench.check.check("b"), NotFound, "no VM")


def test_a_failed_vm_is_checked(bench: Bench) -> None:
    bench.change(state=VmState.FAILED)
    assert bench.done(lambda: bench.check.check("a"))[0]["ok"]


def test_nothing_is_started_meanwhile(bench: Bench) -> None:
    async def main() -> None:
        begun = bench.check.check("a")
        for other in (bench.service.start, bench.check.check):
            with pytest.raises(Busy):
                other("a")
        await bench.operations.wait(begun.id)

    asyncio.run(main())


def test_without_room_it_is_refused_and_nothing_is_left(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench.check._admission, "check", refuse)
    ended = bench.run(lambda: bench.check.check("a"))
    assert ended.error is not None
    assert ended.error["code"] == HostRequirement.code
    assert [path.name for path in bench.disks.state.iterdir()] == ["root.qcow2"]


def refuse(needed: int) -> None:
    raise HostRequirement(f"no room for {needed} bytes")
