"""The database: migrations, names, ids and their prefixes."""

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from banger.model.errors import Conflict, HostRequirement, Invalid, NotFound
from banger.model.vm import EngineProcess, Vm, VmState
from banger.store.db import open_database
from banger.store.vms import VmStore


def make_vm(name: str, vm_id: str) -> Vm:
    return Vm(
        id=vm_id,
        name=name,
        state=VmState.RUNNING,
        image="debian",
        vcpu=2,
        memory_mib=512,
        nat=False,
        engine="qemu",
        accelerator="tcg",
        accelerator_reason="",
        guest_ip="10.0.2.15",
        disk_bytes=1,
        created_at=1.0,
        process=EngineProcess(pid=1, start_ticks=2, boot_id="b"),
    )


@pytest.fixture
def vms(tmp_path: Path) -> Iterator[VmStore]:
    with contextlib.closing(open_database(tmp_path / "db")) as database:
        yield VmStore(database)


def test_a_vm_is_found_by_name_id_and_unambiguous_prefix(vms: VmStore) -> None:
    one, two = make_vm("one", "abcd11111111"), make_vm("two", "abcd22222222")
    vms.add(one)
    vms.add(two)
    assert vms.find("one") == vms.find("abcd11111111") == vms.find("abcd1") == one
    with pytest.raises(Invalid, match=r"one.*two"):
        vms.find("abcd")
    # "a" may be the name of a VM that has just been deleted
    for nobody in ("three", "", "%", "abcd3", "a", "abc"):
        with pytest.raises(NotFound):
            vms.find(nobody)


def test_a_name_wins_over_another_vms_id(vms: VmStore) -> None:
    vms.add(make_vm("one", "beef00000000"))
    named_like_an_id = make_vm("beef00000000", "123456789abc")
    vms.add(named_like_an_id)
    assert vms.find("beef00000000") == named_like_an_id


def test_a_name_can_be_used_once_until_its_vm_is_gone(vms: VmStore) -> None:
    vms.add(make_vm("one", "a"))
    with pytest.raises(Conflict, match="one"):
        vms.add(make_vm("one", "b"))
    vms.remove("a")
    vms.add(make_vm("one", "b"))


def test_updates_survive_reopening(tmp_path: Path) -> None:
    with contextlib.closing(open_database(tmp_path / "db")) as database:
        VmStore(database).add(make_vm("one", "a"))
        VmStore(database).update(msgspec.structs.replace(make_vm("one", "a"), state=VmState.STOPPED, process=None))
    with contextlib.closing(open_database(tmp_path / "db")) as database:
        assert VmStore(database).find("one").state is VmState.STOPPED
    assert (tmp_path / "db").stat().st_mode & 0o777 == 0o600


def test_a_file_that_is_no_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "db"
    path.write_bytes(b"precious" * 1000)
    with pytest.raises(HostRequirement, match="db"):
        open_database(path)
    assert path.read_bytes() == b"precious" * 1000


def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    open_database(tmp_path / "db").close()
    with contextlib.closing(sqlite3.connect(tmp_path / "db")) as raw:
        raw.execute("PRAGMA user_version = 999")
    with pytest.raises(HostRequirement, match="999"):
        open_database(tmp_path / "db")
