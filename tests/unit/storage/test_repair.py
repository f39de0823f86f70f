import asyncio
import errno
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from banger.model.errors import HostRequirement, Invalid
from banger.model.home import SHELL_FILES
from banger.storage.repair import inspect_home, mend
from banger.system.ext4 import read_superblock
from tests.support.work_disks import (
    HOME,
    KEY,
    MIB,
    OTHER,
    Told,
    Tree,
    debugfs,
    digest,
    is_clean,
    make_disk,
    mended,
    names_in,
    read_tree,
    replayable,
    stat,
)

TODAY = time.strftime("%Y-%m-%d")


def _disk(tmp_path: Path, tree: Tree) -> Path:
    return make_disk(tmp_path / "work.ext4", tree)


def _found(disk: Path, key: str = KEY) -> tuple[str, ...]:
    return asyncio.run(inspect_home(disk, key)).lines


def test_a_disk_in_order_is_left_alone(tmp_path: Path) -> None:
    disk = _disk(tmp_path, HOME | {"project/notes": b"mine"})
    before, inode = digest(disk), disk.stat().st_ino
    assert _found(disk) == ()
    assert mended(disk) == []
    assert digest(disk) == before
    assert disk.stat().st_ino == inode


def test_an_empty_disk_becomes_a_home_that_lets_its_owner_in(tmp_path: Path) -> None:
    disk = _disk(tmp_path, {})
    assert {"made .ssh with this host's key", "wrote .bashrc, which was missing"} <= set(mended(disk))
    tree = read_tree(disk)
    assert tree[b".ssh/authorized_keys"] == f"{KEY}\n".encode()
    assert {name: tree[name.encode()] for name in (".profile", ".bashrc")} == {f.path: f.content for f in SHELL_FILES}
    for name, mode in (("/.ssh", "0700"), ("/.ssh/authorized_keys", "0600"), ("/.bashrc", "0644")):
        assert f"Mode:  {mode} " in stat(disk, name)
        assert "User:     0   Group:     0 " in stat(disk, name)
    assert is_clean(disk)
    assert mended(disk) == []


@pytest.mark.parametrize(
    ("commands", "name", "mode"),
    [
        (["sif <2> mode 040777"], "<2>", "0700"),
        (["sif <2> uid 1000", "sif <2> gid 1000"], "<2>", "0700"),
        (["sif <2> uid 200000"], "<2>", "0700"),  # 16 bits of it are elsewhere in the inode
        (["sif /.ssh mode 040775"], "/.ssh", "0700"),
        (["sif /.ssh gid 100"], "/.ssh", "0700"),
        (["sif /.ssh/authorized_keys mode 0100644"], "/.ssh/authorized_keys", "0600"),
        (["sif /.ssh/authorized_keys uid 65536"], "/.ssh/authorized_keys", "0600"),
    ],
)
def test_owners_and_modes_that_were_lost(tmp_path: Path, commands: list[str], name: str, mode: str) -> None:
    disk = _disk(tmp_path, HOME | {"project/notes": b"mine"})
    debugfs(disk, *commands)
    tree = read_tree(disk)
    assert len(_found(disk)) == 1
    assert len(mended(disk)) == 1
    assert f"Mode:  {mode} " in stat(disk, name)
    assert "User:     0   Group:     0 " in stat(disk, name)
    assert read_tree(disk) == tree
    assert is_clean(disk)
    assert mended(disk) == []


@pytest.mark.parametrize("mode", ["040700", "040755", "040750"])
def test_a_home_that_others_may_only_read_is_the_persons_choice(tmp_path: Path, mode: str) -> None:
    disk = _disk(tmp_path, HOME)
    debugfs(disk, f"sif <2> mode {mode}")
    assert mended(disk) == []


@pytest.mark.parametrize("there", [f"{OTHER}\n# {KEY}\n".encode(), OTHER.encode(), b"", b"\xff\xfe\n"])
def test_the_key_is_added_behind_what_is_there(tmp_path: Path, there: bytes) -> None:
    disk = _disk(tmp_path, HOME | {".ssh/authorized_keys": there})
    assert mended(disk) == ["added this host's key to .ssh/authorized_keys"]
    newline = b"" if there.endswith(b"\n") or not there else b"\n"
    assert read_tree(disk)[b".ssh/authorized_keys"] == there + newline + f"{KEY}\n".encode()
    assert mended(disk) == []


@pytest.mark.parametrize("line", [KEY, f'from="10.0.0.1",no-pty {KEY}', KEY.replace(" banger", " by another name")])
def test_a_line_with_the_key_is_enough(tmp_path: Path, line: str) -> None:
    assert mended(_disk(tmp_path, HOME | {".ssh/authorized_keys": f"{OTHER}\n{line}\n".encode()})) == []


@pytest.mark.parametrize("link", [".ssh", ".ssh/authorized_keys"])
def test_links_are_the_persons_and_are_told(tmp_path: Path, link: str) -> None:
    tree = {name: content for name, content in HOME.items() if not name.startswith(link)}
    disk = _disk(tmp_path, tree | {link: "-> dotfiles/ssh", "dotfiles/ssh": b"x"})
    before = digest(disk)
    assert [f"{link} is a symbolic link" in note for note in mended(disk)] == [True]
    assert digest(disk) == before


def test_keys_beyond_measure_are_left_and_told(tmp_path: Path) -> None:
    disk = _disk(tmp_path, HOME | {".ssh/authorized_keys": b"#" * (MIB + 1)})
    before = digest(disk)
    assert f"{MIB + 1} bytes" in mended(disk)[0]
    assert digest(disk) == before


@pytest.mark.parametrize(
    ("name", "instead"),
    [(".ssh", {".ssh": b"a file"}), (".ssh/authorized_keys", {".ssh/authorized_keys/below": b"a directory"})],
)
def test_what_is_in_the_way_is_kept_under_a_dated_name(tmp_path: Path, name: str, instead: Tree) -> None:
    tree = {path: content for path, content in HOME.items() if not path.startswith(name)}
    disk = _disk(tmp_path, tree | instead | {f"{name}.kept-{TODAY}": b"from before"})
    mended(disk)
    found = read_tree(disk)
    kept = f"{name}.kept-{TODAY}"
    assert found[kept.encode()] == b"from before"
    for path, content in instead.items():
        assert found[path.replace(name, f"{kept}-2", 1).encode()] == content
    assert found[b".ssh/authorized_keys"] == f"{KEY}\n".encode()
    assert is_clean(disk)
    assert mended(disk) == []


def test_files_that_a_person_changed_or_linked_stay(tmp_path: Path) -> None:
    disk = _disk(tmp_path, HOME | {".bashrc": b"mine", ".profile": "-> nowhere"})
    assert mended(disk) == []


def test_a_journal_is_replayed_in_place(tmp_path: Path) -> None:
    disk = _disk(tmp_path, HOME | {"data": b"old" * 1000})
    replayable(disk, "/data", b"new" * 1000)
    inode = disk.stat().st_ino
    assert _found(disk) == ("the machine did not shut down: the next start replays the journal",)
    assert mended(disk) == ["the machine had not shut down: the work disk's journal was replayed"]
    assert read_tree(disk)[b"data"] == b"new" * 1000
    assert disk.stat().st_ino == inode
    assert is_clean(disk)
    assert names_in(tmp_path) == ["work.ext4"]
    assert mended(disk) == []


def test_what_the_journal_holds_is_seen_to_as_well(tmp_path: Path) -> None:
    disk = _disk(tmp_path, {f"root/{name}": content for name, content in HOME.items()} | {"root/data": b"old"})
    replayable(disk, "/root/data", b"new")
    assert len(mended(disk)) == 2
    assert read_tree(disk)[b"data"] == b"new"
    assert is_clean(disk)


@pytest.mark.parametrize("field", ["state 3", "state 0", "last_orphan 12", "max_mnt_count 1", "lastcheck 20010101"])
def test_a_filesystem_that_asks_for_a_check_gets_it(tmp_path: Path, field: str) -> None:
    disk = _disk(tmp_path, HOME | {"data": b"mine"})
    debugfs(disk, "ssv mnt_count 1", "ssv checkinterval 86400", f"ssv {field}")
    assert len(_found(disk)) == 1
    assert any("checked and mended" in note for note in mended(disk))
    assert is_clean(disk)
    seen = read_superblock(disk)
    assert (seen.clean, seen.check_due) == (True, False)
    assert read_tree(disk)[b"data"] == b"mine"
    assert mended(disk) == []


def test_a_destroyed_journal_is_made_again(tmp_path: Path) -> None:
    disk = _disk(tmp_path, HOME | {"data": b"old"})
    replayable(disk, "/data", b"new")
    at = int(debugfs(disk, "bmap <8> 0").splitlines()[-1])
    with disk.open("r+b") as file:
        file.seek(at * 4096)
        file.write(os.urandom(4096))
    assert "cannot be replayed" in mended(disk)[0]
    assert read_tree(disk)[b"data"] == b"old"
    assert is_clean(disk)
    assert mended(disk) == []


def _shared_blocks(disk: Path) -> None:
    """Two files that say they have the same blocks: e2fsck does not decide that by itself."""
    block = debugfs(disk, "bmap /first 0").splitlines()[-1]
    debugfs(disk, f"sif /second bmap[0] {block}", "ssv state 3")


def test_what_e2fsck_cannot_mend_is_refused_and_untouched(tmp_path: Path) -> None:
    disk = _disk(tmp_path, HOME | {"first": b"1" * 5000, "second": b"2" * 5000})
    _shared_blocks(disk)
    before, seen = digest(disk), disk.stat()
    with pytest.raises(Invalid) as caught:
        mended(disk)
    assert str(disk) in caught.value.message
    assert "as it was" in caught.value.message
    assert "UNEXPECTED INCONSISTENCY" in caught.value.message
    assert ".work.ext4" not in caught.value.message + caught.value.hint + str(caught.value.details)
    assert f"cp --sparse=always {disk}" in caught.value.hint
    assert digest(disk) == before
    assert (disk.stat().st_ino, disk.stat().st_mode, disk.stat().st_uid) == (seen.st_ino, seen.st_mode, seen.st_uid)
    assert names_in(tmp_path) == ["work.ext4"]


def test_a_journal_that_cannot_be_replayed_leaves_no_trace_when_it_is_refused(tmp_path: Path) -> None:
    disk = _disk(tmp_path, HOME | {"first": b"1" * 5000, "second": b"2" * 5000, "data": b"old"})
    block = debugfs(disk, "bmap /first 0").splitlines()[-1]
    debugfs(disk, f"sif /second bmap[0] {block}")
    replayable(disk, "/data", b"new", checksums=True)
    at = int(debugfs(disk, "bmap <8> 2").splitlines()[-1])  # behind the journal's superblock and the descriptor
    with disk.open("r+b") as file:
        file.seek(at * 4096 + 10)
        file.write(b"damaged")
    before = digest(disk)
    with pytest.raises(Invalid, match="cannot mend"):
        mended(disk)
    assert digest(disk) == before
    assert names_in(tmp_path) == ["work.ext4"]


@pytest.mark.parametrize("content", [b"", b"\0" * 4096, os.urandom(MIB)])
def test_what_is_no_filesystem_is_refused(tmp_path: Path, content: bytes) -> None:
    disk = tmp_path / "work.ext4"
    disk.write_bytes(content)
    with pytest.raises(Invalid, match="no ext4"):
        mended(disk)
    assert disk.read_bytes() == content


def test_a_disk_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match=r"work\.ext4 is missing"):
        mended(tmp_path / "work.ext4")


@pytest.mark.parametrize("key", ["", "ssh-ed25519", f"{KEY}\n{OTHER}", f"{KEY}\x1b[2J"])
def test_a_key_that_is_none_is_refused(tmp_path: Path, key: str) -> None:
    with pytest.raises(Invalid, match="no public SSH key"):
        mended(_disk(tmp_path, HOME), key)


def test_a_file_shorter_than_its_filesystem_is_refused(tmp_path: Path) -> None:
    disk = _disk(tmp_path, HOME)
    os.truncate(disk, 8 * MIB)
    before = digest(disk)
    with pytest.raises(Invalid, match="cannot mend"):
        mended(disk)
    assert digest(disk) == before


def test_a_full_disk_is_left_to_its_owner(tmp_path: Path) -> None:
    disk = _disk(tmp_path, HOME | {"big": b""})
    debugfs(disk, "rm /.bashrc")
    room = read_superblock(disk).free_bytes // 4096
    debugfs(disk, f"fallocate /big 0 {room - 3}")
    assert read_superblock(disk).free_bytes < 8 * 4096
    before = digest(disk)
    assert mended(disk) == ["the work disk is full, so this stays as it is: .bashrc is missing"]
    assert digest(disk) == before


def test_a_copy_asks_for_room_and_tells_how_far_it_is(tmp_path: Path) -> None:
    disk = _disk(tmp_path, {name: content for name, content in HOME.items() if name != ".bashrc"})
    asked: list[int] = []
    told = Told()

    @contextmanager
    def room(needed: int) -> Iterator[None]:
        asked.append(needed)
        yield

    asyncio.run(mend(disk, KEY, told, room))  # type: ignore[arg-type]
    if asked:  # not where the filesystem shares blocks
        assert 0 < asked[0] <= disk.stat().st_size
        done, total, unit = told.copied[-1]
        assert (done, unit) == (total, "bytes")


@contextmanager
def _no_room(needed: int) -> Iterator[None]:
    raise HostRequirement("the disk has too little room")
    yield


def test_without_room_for_a_copy_small_things_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("banger.storage.copies.clone_file", lambda source, target: False)
    disk = _disk(tmp_path, {name: content for name, content in HOME.items() if name != ".bashrc"})
    before, told = digest(disk), Told()
    asyncio.run(mend(disk, KEY, told, _no_room))  # type: ignore[arg-type]
    assert told.notes == ["the disk has too little room, so this stays as it is: .bashrc is missing"]
    assert digest(disk) == before
    debugfs(disk, "ssv state 3")
    before = digest(disk)
    with pytest.raises(HostRequirement, match="too little room"):
        asyncio.run(mend(disk, KEY, told, _no_room))  # type: ignore[arg-type]
    assert digest(disk) == before
    assert names_in(tmp_path) == ["work.ext4"]


def test_a_host_that_fails_is_no_defect_of_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("banger.storage.repair.sync_path", full)
    disk = _disk(tmp_path, HOME | {"data": b"old"})
    replayable(disk, "/data", b"new")
    debugfs(disk, "ssv state 3")
    before = digest(disk)
    with pytest.raises(HostRequirement, match="No space left"):
        mended(disk)
    assert digest(disk) == before
    assert names_in(tmp_path) == ["work.ext4"]


def test_what_a_killed_mend_has_left_goes(tmp_path: Path) -> None:
    disk = _disk(tmp_path, HOME)
    (tmp_path / ".work.ext4.0a1b2c3d").write_bytes(b"half a copy")
    (tmp_path / ".work.ext4.undo").write_bytes(b"")
    (tmp_path / ".other.ext4.0a1b2c3d").write_bytes(b"not ours")
    before = digest(disk)
    assert mended(disk) == []
    assert digest(disk) == before
    assert names_in(tmp_path) == [".other.ext4.0a1b2c3d", "work.ext4"]


def _replay_by_hand(disk: Path, undo: Path) -> None:
    argv: list[str | Path] = ["e2fsck", "-z", undo, "-p", "-E", "journal_only", disk]
    subprocess.run(argv, check=True, timeout=60, capture_output=True)


def test_a_replay_that_was_not_finished_is_taken_back_and_done_again(tmp_path: Path) -> None:
    """As if killed between e2fsck's end and ours."""
    disk = _disk(tmp_path, HOME | {"data": b"old"})
    replayable(disk, "/data", b"new")
    undo = tmp_path / ".work.ext4.undo"
    _replay_by_hand(disk, undo)
    assert not read_superblock(disk).needs_recovery
    assert mended(disk) == ["the machine had not shut down: the work disk's journal was replayed"]
    assert read_tree(disk)[b"data"] == b"new"


def test_an_undo_file_of_another_time_changes_nothing(tmp_path: Path) -> None:
    disk = _disk(tmp_path, HOME | {"data": b"old"})
    replayable(disk, "/data", b"new")
    undo = tmp_path / ".work.ext4.undo"
    _replay_by_hand(disk, undo)
    debugfs(disk, "mkdir later")
    assert mended(disk) == []
    assert b"later" in read_tree(disk)


def test_a_filesystem_with_data_in_inodes_boots_as_it_is(tmp_path: Path) -> None:
    options = ("-b", "4096", "-I", "256", "-J", "size=4", "-O", "inline_data")
    disk = make_disk(tmp_path / "work.ext4", HOME, options=options)
    assert ["not looked into" in note for note in mended(disk)] == [True]
