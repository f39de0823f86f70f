"""kill -9 in the middle of mending: the disk is the old or the new one, and the next mend makes it the new one."""

import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from banger.model.errors import BangerError, Timeout
from tests.support.work_disks import (
    KEY,
    Tree,
    digest,
    is_clean,
    make_disk,
    mended,
    names_in,
    read_tree,
    replayable,
    stand_in,
)
from tests.unit.storage.test_damage import TREE

ROOT = Path(__file__).parents[3]
NESTED: Tree = {f"root/{name}": content for name, content in TREE.items() if "authorized_keys" not in name}
# argv: the disk, the key, the point or the seconds after which to be killed
DRIVER = """
import asyncio, os, signal, sys, threading
from contextlib import nullcontext
from pathlib import Path
from banger.storage import repair
from banger.system import e2fsprogs

class Told:
    def note(self, text): pass
    def progress(self, done, total, unit): pass

points = 0
def point():
    global points
    points += 1
    if sys.argv[3] == str(points):
        os.kill(os.getpid(), signal.SIGKILL)

run, sync = e2fsprogs.run_bounded, repair.sync_path
async def run_between_points(*words, **options):
    point()
    return await run(*words, **options)
def sync_between_points(path):
    point()
    sync(path)
    point()
e2fsprogs.run_bounded, repair.sync_path = run_between_points, sync_between_points
if "." in sys.argv[3]:
    threading.Timer(float(sys.argv[3]), os.kill, (os.getpid(), signal.SIGKILL)).start()
asyncio.run(repair.mend(Path(sys.argv[1]), sys.argv[2], Told(), lambda _: nullcontext()))
os._exit(0)
"""


def _killed(disk: Path, when: str) -> bool:
    """Whether it was, before it was done."""
    path = f"{ROOT / 'src'}:{os.environ.get('PYTHONPATH', '')}"
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, disk, KEY, when],
        env=os.environ | {"PYTHONPATH": path},
        timeout=60,
        capture_output=True,
        check=False,
    )
    assert done.returncode in (0, -signal.SIGKILL), done.stderr.decode()
    return done.returncode != 0


@pytest.fixture
def disks(tmp_path: Path) -> tuple[Path, Path]:
    """One as it was before, and a place for another."""
    old = make_disk(tmp_path / "old.ext4", NESTED)
    replayable(old, "/root/data", b"2" * 4096)
    (tmp_path / "vm").mkdir()
    return old, tmp_path / "vm/work.ext4"


def _copy(old: Path, disk: Path) -> None:
    shutil.copyfile(old, disk)
    disk.chmod(0o600)


def _comes_right(disk: Path, new: dict[bytes, bytes | None]) -> None:
    mended(disk)
    assert read_tree(disk) == new
    assert is_clean(disk)
    assert names_in(disk.parent) == [disk.name]
    assert (disk.stat().st_uid, disk.stat().st_mode & 0o7777) == (os.geteuid(), 0o600)
    assert mended(disk) == []


def test_killed_at_every_step(disks: tuple[Path, Path]) -> None:
    old, disk = disks
    before, dirty = read_tree(old), digest(old)
    _copy(old, disk)
    assert not _killed(disk, "never")
    new = read_tree(disk)
    assert new[b"data"] == b"2" * 4096 + b"1" * 904
    replayed = before | {b"root/data": new[b"data"]}
    assert {f"root/{n.decode()}".encode() for n in new if not n.startswith((b".ssh", b"lost"))} <= set(before)
    for point in range(1, 100):
        _copy(old, disk)
        if not _killed(disk, str(point)):
            break
        assert digest(disk) == dirty or read_tree(disk) in (replayed, new)
        _comes_right(disk, new)
    assert 10 < point < 40


@pytest.mark.parametrize("seed", range(12))
def test_killed_at_any_moment(disks: tuple[Path, Path], seed: int) -> None:
    old, disk = disks
    _copy(old, disk)
    mended(disk)
    new = read_tree(disk)
    _copy(old, disk)
    _killed(disk, f"{random.Random(seed).uniform(0.01, 0.3):.4f}")
    _comes_right(disk, new)


@pytest.mark.parametrize("program", ["e2fsck", "debugfs"])
def test_a_program_that_is_killed(disks: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    old, disk = disks
    _copy(old, disk)
    before = digest(disk)
    with stand_in(monkeypatch, program, "kill -9 $$"), pytest.raises(BangerError, match=rf"{program} .*SIGKILL"):
        mended(disk)
    assert digest(disk) == before
    assert names_in(disk.parent) == [disk.name]


def test_a_program_that_hangs(disks: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    old, disk = disks
    _copy(old, disk)
    before = digest(disk)
    monkeypatch.setattr("banger.system.e2fsck._REPLAY_S", 0.5)
    with stand_in(monkeypatch, "e2fsck", "exec sleep 600"), pytest.raises(Timeout, match="e2fsck did not finish"):
        mended(disk)
    assert digest(disk) == before
    assert names_in(disk.parent) == [disk.name]
