"""banger.system.files and ext4, as images use them."""

import asyncio
import hashlib
import shutil
import threading
from pathlib import Path

import pytest

from banger.model.errors import CommandFailed, Invalid
from banger.system.ext4 import MIB, check_ext4, make_ext4
from banger.system.files import allocated_bytes, in_thread, remove_tree, sha256_of, write_new

needs_e2fsprogs = pytest.mark.skipif(shutil.which("mke2fs") is None, reason="e2fsprogs is not installed")


def test_a_sparse_files_digest_is_the_ordinary_one(tmp_path: Path) -> None:
    file = tmp_path / "sparse"
    with file.open("wb") as out:
        out.seek(3 * MIB + 5)
        out.write(b"middle")
        out.truncate(9 * MIB + 7)
    assert sha256_of(file) == hashlib.sha256(file.read_bytes()).hexdigest()
    file.write_bytes(b"")
    assert sha256_of(file) == hashlib.sha256(b"").hexdigest()


def test_a_new_file_is_never_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "target")
    with pytest.raises(FileExistsError):
        write_new(tmp_path / "link", b"x")
    assert not (tmp_path / "target").exists()


def test_a_cancelled_caller_waits_for_its_thread() -> None:
    begun, go, ended = threading.Event(), threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        go.wait(10)
        ended.set()

    async def scenario() -> None:
        task = asyncio.create_task(in_thread(work))
        await asyncio.to_thread(begun.wait, 10)
        task.cancel()
        await asyncio.sleep(0)
        go.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert ended.is_set()

    asyncio.run(scenario())


def test_removing_a_tree_does_not_follow_links_and_absence_is_fine(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept/file").write_text("x")
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/link").symlink_to(tmp_path / "kept")
    asyncio.run(remove_tree(tmp_path / "tree"))
    asyncio.run(remove_tree(tmp_path / "tree"))
    assert [entry.name for entry in tmp_path.iterdir()] == ["kept"]
    assert (tmp_path / "kept/file").exists()


@needs_e2fsprogs
def test_a_filesystem_is_sparse_sound_and_damage_is_seen(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/file").write_text("content")
    image = tmp_path / "fs"
    asyncio.run(make_ext4(image, 1024 * MIB, label="test", tree=tmp_path / "tree"))
    asyncio.run(check_ext4(image))
    assert image.stat().st_size == 1024 * MIB
    assert allocated_bytes(image) < 8 * MIB
    with image.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * 8192)
    with pytest.raises(Invalid, match="has errors"):
        asyncio.run(check_ext4(image))


@needs_e2fsprogs
def test_a_tree_that_does_not_fit_fails(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/file").write_bytes(bytes(range(256)) * 4096 * 20)
    with pytest.raises(CommandFailed):
        asyncio.run(make_ext4(tmp_path / "fs", 16 * MIB, label="test", tree=tmp_path / "tree"))


def test_an_impossible_size_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Invalid):
        asyncio.run(make_ext4(tmp_path / "fs", 1000, label="test"))
    assert not (tmp_path / "fs").exists()
