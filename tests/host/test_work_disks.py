"""Work disks that a kernel has mounted: what a machine leaves when it dies, and what it finds when it starts again."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.work_disks import HOME, MIB, Told, Tree, debugfs, is_clean, make_disk, mended, names_in, read_tree

pytestmark = [pytest.mark.host, pytest.mark.skipif(os.geteuid() != 0, reason="mounts are root's")]


@contextmanager
def mounted(disk: Path, kind: str = "ext4") -> Iterator[Path]:
    point = disk.with_suffix(".mounted")
    point.mkdir(exist_ok=True)
    argv = ["mount", "-t", kind, "-o", "loop", str(disk), str(point)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"{kind} cannot be mounted here: {done.stderr.strip()}")
    try:
        yield point
    finally:
        subprocess.run(["umount", str(point)], check=True)
        point.rmdir()


def write_durably(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def died(tmp_path: Path, tree: Tree, place: str) -> Path:
    """A disk as it was when its machine died, with files synced a moment before, and one deleted while open."""
    alive = make_disk(tmp_path / "alive.ext4", tree, size=64 * MIB)
    disk = tmp_path / "vm/work.ext4"
    disk.parent.mkdir()
    with mounted(alive) as point:
        for number in range(200):
            write_durably(point / place / f"log {number}", b"%d" % number)
        with (point / place / "gone").open("wb") as gone:
            gone.write(bytes(MIB))
            (point / place / "gone").unlink()
            write_durably(point / place / "last", b"synced")
            shutil.copyfile(alive, disk)
    disk.chmod(0o600)
    return disk


def test_what_was_synced_before_a_crash_is_there(tmp_path: Path) -> None:
    disk = died(tmp_path, HOME, ".")
    inode = disk.stat().st_ino
    assert mended(disk) == ["the machine had not shut down: the work disk's journal was replayed"]
    assert disk.stat().st_ino == inode
    found = read_tree(disk)
    assert found[b"last"] == b"synced"
    assert [found[f"log {number}".encode()] for number in range(200)] == [b"%d" % number for number in range(200)]
    assert is_clean(disk)
    assert names_in(disk.parent) == ["work.ext4"]
    assert mended(disk) == []


def test_a_nested_home_whose_machine_died(tmp_path: Path) -> None:
    disk = died(tmp_path, {f"root/{name}": content for name, content in HOME.items()}, "root")
    assert len(mended(disk)) == 2
    assert read_tree(disk)[b"last"] == b"synced"
    assert is_clean(disk)


def test_a_kernel_takes_what_was_mended(tmp_path: Path) -> None:
    """Its directory is read, grows and shrinks, with the kernel checking every checksum."""
    tree: Tree = {f"root/{name}": content for name, content in HOME.items()}
    tree |= {f"root/file number {number:05}": b"%d" % number for number in range(400)} | {"root/dir/below": b"1"}
    disk = make_disk(tmp_path / "work.ext4", tree, options=("-b", "4096"))
    mended(disk)
    debugfs(disk, "rm /.bashrc", "sif <2> mode 040777", "sif <2> uid 7")
    assert len(mended(disk)) == 2
    with mounted(disk) as point:
        assert len(list(point.iterdir())) == 400 + 5  # with .ssh, .profile, .bashrc, dir and lost+found
        assert (point / "dir/..").samefile(point)
        for number in range(400):
            (point / f"file number {number:05}").rename(point / f"renamed {number}")
            (point / f"new {number}").write_bytes(b"new")
        assert (point.stat().st_mode & 0o7777, point.stat().st_uid) == (0o700, 0)
        assert (point / ".ssh/authorized_keys").stat().st_mode & 0o7777 == 0o600
    assert is_clean(disk)
    assert mended(disk) == []


def test_where_blocks_can_be_shared_nothing_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if shutil.which("mkfs.xfs") is None:
        pytest.skip("mkfs.xfs is not installed")
    outer = tmp_path / "outer"
    with outer.open("wb") as file:
        file.truncate(512 * MIB)
    subprocess.run(["mkfs.xfs", "-q", str(outer)], check=True, capture_output=True)
    told = Told()
    monkeypatch.setattr("tests.support.work_disks.Told", lambda: told)
    with mounted(outer, "xfs") as point:
        disk = make_disk(point / "work.ext4", {f"root/{name}": content for name, content in HOME.items()})
        assert len(mended(disk)) == 1
        assert is_clean(disk)
    assert told.copied == []
