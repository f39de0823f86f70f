"""On a disk without a free block the database is written, closed, and opened again."""

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from banger.model.errors import HostRequirement
from banger.store.db import open_database
from banger.store.operations import OperationStore
from banger.store.vms import VmStore
from tests.unit.test_store import make_vm

MIB = 1 << 20
UPDATES = 5000
ID = "abc111111111"
pytestmark = [pytest.mark.host, pytest.mark.skipif(os.geteuid() != 0, reason="mounts are root's")]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small ext4."""
    image, mount = tmp_path / "image", tmp_path / "disk"
    mount.mkdir()
    with image.open("wb") as file:
        file.truncate(64 * MIB)
    subprocess.run(["mke2fs", "-q", "-t", "ext4", "-m", "0", str(image)], check=True)
    subprocess.run(["mount", "-o", "loop", str(image), str(mount)], check=True)
    yield mount
    subprocess.run(["umount", str(mount)], check=True)


def fill(disk: Path) -> None:
    """To the last block, also what has become free since."""
    for size in (MIB, 1):
        with contextlib.suppress(OSError), (disk / "filler").open("ab", buffering=0) as file:
            while True:
                file.write(b"x" * size)
    assert os.statvfs(disk).f_bavail == 0


def change(vms: VmStore, text: str, times: int = UPDATES) -> None:
    for number in range(times):
        vms.update(msgspec.structs.replace(vms.find("a"), problem=f"{text} {number}"))


def test_it_is_written_closed_and_opened_again(disk: Path) -> None:
    with contextlib.closing(open_database(disk / "db", spare=True)) as database:
        VmStore(database).add(make_vm("a", ID))
        fill(disk)
        change(VmStore(database), "first")
    for text in ("second", "third"):
        fill(disk)
        with contextlib.closing(open_database(disk / "db", spare=True)) as database:
            vms = VmStore(database)
            assert vms.find("a").problem.endswith(f" {UPDATES - 1}")
            change(vms, text)
            assert OperationStore(database).all(10) == []
            assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert {path.name for path in disk.iterdir()} == {"db", ".db-spare", "filler", "lost+found"}


def test_one_that_was_killed_loses_nothing(disk: Path) -> None:
    with contextlib.closing(open_database(disk / "db", spare=True)) as database:
        VmStore(database).add(make_vm("a", ID))
    fill(disk)
    child = os.fork()
    if child == 0:
        try:
            change(VmStore(open_database(disk / "db", spare=True)), "killed", 700)
            os.kill(os.getpid(), signal.SIGKILL)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    fill(disk)
    with contextlib.closing(open_database(disk / "db", spare=True)) as database:
        assert VmStore(database).find("a").problem == "killed 699"
        change(VmStore(database), "after")


def test_an_old_log_is_never_read_again(disk: Path) -> None:
    """What was left of a log holds what the database has meanwhile gone past."""
    with contextlib.closing(open_database(disk / "db", spare=True)) as database:
        VmStore(database).add(make_vm("a", ID))
        change(VmStore(database), "old", 10)
    old = (disk / ".db-spare").read_bytes()
    with contextlib.closing(open_database(disk / "db", spare=True)) as database:
        change(VmStore(database), "new", 1)
    (disk / ".db-spare").write_bytes(old)
    with contextlib.closing(open_database(disk / "db", spare=True)) as database:
        assert VmStore(database).find("a").problem == "new 0"


def test_a_new_one_that_has_no_room_says_so(disk: Path) -> None:
    fill(disk)
    with pytest.raises(HostRequirement, match="cannot use the database"):
        open_database(disk / "db", spare=True)
