"""Volumes on disk: a work disk becomes one and back by renames, and whatever ends us on the way loses nothing."""

import asyncio
import os
import random
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from banger.model.errors import HostRequirement, Invalid, NotFound
from banger.model.names import NAME_MAX, numbered_name
from banger.model.volume import Volume
from banger.paths import Paths
from banger.storage import volumes

ROOT = Path(__file__).parents[3]


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    (tmp_path / "s" / "vms" / "one").mkdir(parents=True)
    return Paths(tmp_path / "s", tmp_path / "r", tmp_path / "c")


def facts(name: str = "demo") -> Volume:
    return Volume(name=name, image="debian", vm="demo", created_at="2026-01-02T03:04:05+00:00")


def disk(paths: Paths, content: bytes = b"precious") -> Path:
    path = paths.vm("one").work_disk
    path.write_bytes(content)
    return path


def entries(paths: Paths) -> list[str]:
    return sorted(path.name for path in paths.volumes.iterdir())


def test_a_disk_becomes_a_volume_and_a_vms_again(paths: Paths) -> None:
    work = disk(paths)
    inode = work.stat().st_ino
    assert volumes.keep(paths, work, facts()) == facts()
    assert not work.exists()
    assert volumes.list_volumes(paths) == [facts()] == [volumes.find_volume(paths, "demo")]
    assert paths.volume("demo").disk.stat().st_ino == inode
    volumes.take(paths, "demo", work)
    assert (work.read_bytes(), work.stat().st_ino) == (b"precious", inode)
    assert entries(paths) == []


def test_no_volumes_yet(paths: Paths) -> None:
    assert volumes.list_volumes(paths) == []
    assert asyncio.run(volumes.sweep(paths)) == []
    with pytest.raises(NotFound) as error:
        volumes.find_volume(paths, "demo")
    assert "--keep-work-disk" in error.value.hint


def test_a_name_that_is_taken_gets_a_number(paths: Paths) -> None:
    names = [volumes.keep(paths, disk(paths, name.encode()), facts()).name for name in ("first", "second", "third")]
    assert names == ["demo", "demo-2", "demo-3"]
    assert [volume.name for volume in volumes.list_volumes(paths)] == names
    assert paths.volume("demo-2").disk.read_bytes() == b"second"


def test_numbered_names_are_names() -> None:
    long = "a" * NAME_MAX
    assert numbered_name(long, {long}) == "a" * (NAME_MAX - 2) + "-2"
    assert len(numbered_name(long, {long, *(f"{'a' * (NAME_MAX - 2)}-{n}" for n in range(2, 10))})) == NAME_MAX
    assert numbered_name("a" * 37 + "-bc", {"a" * 37 + "-bc"}) == "a" * 37 + "-2"


def test_a_volume_nearly_named_is_told(paths: Paths) -> None:
    volumes.keep(paths, disk(paths), facts("notes"))
    with pytest.raises(NotFound) as error:
        volumes.find_volume(paths, "nots")
    assert "notes" in error.value.hint
    for wrong in ("../vms", "", ".tmp-1", "Notes"):
        with pytest.raises(Invalid, match="not a valid volume name"):
            volumes.find_volume(paths, wrong)


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda where: where.disk.unlink(), "work.ext4 is missing"),
        (lambda where: where.metadata.unlink(), "volume.json cannot be used"),
        (lambda where: where.metadata.write_bytes(b"{"), "volume.json cannot be used"),
        (lambda where: where.metadata.write_bytes(msgspec.json.encode(facts("other"))), "calls it 'other'"),
        (
            lambda where: where.metadata.write_bytes(msgspec.json.encode(msgspec.structs.replace(facts(), format=9))),
            "format 9",
        ),
        (
            lambda where: (where.disk.unlink(), where.disk.symlink_to("/etc/passwd")),
            "work.ext4 is missing",
        ),
    ],
)
def test_what_is_damaged_is_said_and_can_be_deleted(paths: Paths, harm: object, said: str) -> None:
    volumes.keep(paths, disk(paths), facts())
    assert callable(harm)
    harm(paths.volume("demo"))
    assert volumes.list_volumes(paths) == []
    with pytest.raises(Invalid, match=said):
        volumes.find_volume(paths, "demo")
    with pytest.raises(Invalid, match=said):
        volumes.take(paths, "demo", paths.vm("one").work_disk)
    assert volumes.keep(paths, disk(paths), facts()).name == "demo-2"  # a damaged one keeps its name
    asyncio.run(volumes.delete(paths, "demo"))
    assert entries(paths) == ["demo-2"]


def test_a_disk_that_is_there_is_never_replaced(paths: Paths) -> None:
    work = disk(paths)
    volumes.keep(paths, work, facts())
    work.write_bytes(b"another")
    with pytest.raises(FileExistsError):
        volumes.take(paths, "demo", work)
    assert work.read_bytes() == b"another"
    assert volumes.list_volumes(paths) == [facts()]


def test_a_volume_that_cannot_be_moved_is_a_volume_again(paths: Paths) -> None:
    volumes.keep(paths, disk(paths), facts())
    with pytest.raises(FileNotFoundError):
        volumes.take(paths, "demo", paths.vm("nobody").work_disk)
    assert volumes.list_volumes(paths) == [facts()]
    assert entries(paths) == ["demo"]


def test_a_disk_that_cannot_be_moved_stays(paths: Paths) -> None:
    with pytest.raises(FileNotFoundError):
        volumes.keep(paths, paths.vm("one").work_disk, facts())
    assert entries(paths) == []


def test_another_filesystem_is_refused_before_anything_is_moved(paths: Paths) -> None:
    work, other = disk(paths), Path("/dev/shm")
    volumes.check_movable(paths, work)
    if not other.is_dir() or other.stat().st_dev == work.stat().st_dev:
        pytest.skip("there is one filesystem here")
    paths.volumes.symlink_to(other)
    with pytest.raises(HostRequirement, match="another filesystem"):
        volumes.check_movable(paths, work)


def test_a_sweep_gives_what_it_saves_a_free_name(paths: Paths) -> None:
    volumes.keep(paths, disk(paths), facts())
    (left := paths.volumes / ".tmp-1").mkdir()
    (left / "volume.json").write_bytes(msgspec.json.encode(facts()))
    (left / "work.ext4").write_bytes(b"second")
    assert [volume.name for volume in asyncio.run(volumes.sweep(paths))] == ["demo-2"]
    assert volumes.find_volume(paths, "demo-2") == facts("demo-2")
    assert paths.volume("demo-2").disk.read_bytes() == b"second"
    assert entries(paths) == ["demo", "demo-2"]


@pytest.mark.parametrize("described", [None, b"{", msgspec.json.encode(facts("../../etc"))])
def test_a_disk_without_a_description_is_saved_all_the_same(paths: Paths, described: bytes | None) -> None:
    (left := paths.volumes / ".tmp-1").mkdir(parents=True)
    if described is not None:
        (left / "volume.json").write_bytes(described)
    (left / "work.ext4").write_bytes(b"precious")
    assert [volume.name for volume in asyncio.run(volumes.sweep(paths))] == ["rescued"]
    assert paths.volume(volumes.find_volume(paths, "rescued").name).disk.read_bytes() == b"precious"


def killed(*words: str) -> int:
    """How often the program in killed.py was killed; it looks for itself at what was left each time."""
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("killed.py")), *words],
        env={**os.environ, "PYTHONPATH": f"{ROOT / 'src'}"},
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    return int(done.stdout)


@pytest.mark.parametrize(("action", "steps"), [("keep", 8), ("take", 8), ("delete", 5)])
def test_killed_at_any_step_the_disk_is_whole_and_in_one_place(tmp_path: Path, action: str, steps: int) -> None:
    assert killed(action, str(tmp_path / "x")) >= steps


@pytest.mark.parametrize("action", ["keep", "take", "delete"])
def test_a_sweep_that_is_killed_as_well_is_finished_by_the_next(tmp_path: Path, action: str) -> None:
    seeded = random.Random(f"volumes {action}")
    numbers = [number for _ in range(24) for number in (seeded.randint(2, 12), seeded.randint(1, 10))]
    assert killed(action, str(tmp_path / "x"), *map(str, numbers)) >= 20
