"""What `vm check` finds in disks that were made by hand: sound, not closed, cut off, damaged, and made to deceive."""

import asyncio
import contextlib
import hashlib
import os
import shutil
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from banger.model.documents import DiskCheck
from banger.model.errors import HostRequirement
from banger.storage import check
from banger.storage.overlays import create_root_overlay
from banger.system.ext4 import make_ext4
from banger.system.watch import file_appears

MIB = 1024 * 1024
pytestmark = pytest.mark.skipif(
    not all(shutil.which(name) for name in ("qemu-img", "qemu-io", "debugfs")), reason="needs qemu-utils and e2fsprogs"
)


class Told:
    """A `Progress` that remembers, and room for `limit` bytes."""

    def __init__(self, limit: int = 1 << 40) -> None:
        self.limit = limit
        self.held = 0
        self.amounts: list[tuple[int, int | None, str]] = []

    def stage(self, name: str, *, deadline_s: float | None = None) -> contextlib.AbstractAsyncContextManager[None]:
        raise NotImplementedError

    def progress(self, done: int, total: int | None, unit: str) -> None:
        self.amounts.append((done, total, unit))

    def note(self, text: str) -> None:
        raise NotImplementedError

    @contextlib.contextmanager
    def room(self, needed: int) -> Iterator[None]:
        if needed > self.limit:
            raise HostRequirement("the disk has too little room")
        self.held = max(self.held, needed)
        yield


class Disks:
    """An image's root, and a VM's directory with an overlay that is larger, as `--disk` makes it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.vm = root / "vm"
        self.vm.mkdir()
        self.base, self.overlay, self.raw = root / "root.ext4", self.vm / "root.qcow2", self.vm / "work.ext4"
        tree = root / "tree"
        (tree / "etc").mkdir(parents=True)
        (tree / "etc" / "hostname").write_text("demo\n")
        asyncio.run(make_ext4(self.base, 16 * MIB, label="root", tree=tree))

    def cover(self, base: Path | None = None) -> None:
        asyncio.run(create_root_overlay(base or self.base, self.overlay, 64 * MIB))

    def io(self, *commands: str, status: int = 0) -> None:
        """What a machine does to the overlay."""
        argv = ["qemu-io", "-f", "qcow2", *(word for command in commands for word in ("-c", command))]
        done = subprocess.run([*argv, str(self.overlay)], capture_output=True, timeout=60, check=False)
        assert done.returncode == status, done.stderr

    def check_overlay(self, told: Told | None = None) -> DiskCheck:
        told = told or Told()
        return self.unchanged(lambda: asyncio.run(check.check_overlay(self.overlay, self.base, told, told.room)))

    def check_raw(self, told: Told | None = None) -> DiskCheck:
        told = told or Told()
        return self.unchanged(lambda: asyncio.run(check.check_disk("work disk", self.raw, told, told.room)))

    def unchanged(self, act: Callable[[], DiskCheck]) -> DiskCheck:
        before = self.digests()
        found = act()
        assert self.digests() == before
        return found

    def digests(self) -> dict[str, str]:
        files = [self.base, *self.vm.iterdir()]
        return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture
def disks(tmp_path: Path) -> Disks:
    return Disks(tmp_path)


def debugfs(image: Path, *commands: str) -> str:
    done = subprocess.run(
        ["debugfs", "-w", "-f", "-", str(image)],
        input="\n".join(commands).encode(),
        capture_output=True,
        timeout=60,
        check=True,
    )
    return done.stdout.decode()


def bitmap_block(image: Path) -> int:
    """Where the first group's block bitmap lies."""
    told = debugfs(image, "show_super_stats")
    return int(told.partition("block bitmap at ")[2].partition(",")[0])


def clobber(image: Path, block: int, content: bytes) -> None:
    with image.open("r+b") as file:
        file.seek(block * 1024)
        file.write(content)


def leave_a_journal(image: Path, content: Path) -> tuple[int, int]:
    """As a machine that was cut off: what mends the bitmap, which is damaged, is in the journal alone.

    Returns where bitmap and journal lie.
    """
    block, journal = bitmap_block(image), int(debugfs(image, "bmap <8> 0").split("\n")[1])
    with image.open("rb") as file:
        file.seek(block * 1024)
        content.write_bytes(file.read(1024))
    debugfs(image, "journal_open", f"journal_write -b {block} {content}", "journal_close")
    clobber(image, block, bytes(1024))
    return block, journal


def test_a_sound_overlay(disks: Disks) -> None:
    disks.cover()
    disks.io("write -P 7 40M 1M")
    told = Told()
    assert disks.check_overlay(told) == {"part": "root disk", "ok": True, "notes": []}
    (done, total, unit) = told.amounts[-1]
    assert (done, unit) == (total, "bytes")
    assert told.held == total


def test_one_that_was_not_closed_is_no_damage(disks: Disks) -> None:
    disks.cover()
    disks.io("write -P 7 40M 1M", "flush", "abort", status=-6)
    assert subprocess.run(["qemu-img", "check", "-q", "-f", "qcow2", disks.overlay], check=False).returncode == 2
    found = disks.check_overlay()
    assert found["ok"]
    assert found["notes"] == [check.NOT_CLOSED]


def test_a_journal_to_replay_is_no_damage(disks: Disks) -> None:
    leave_a_journal(disks.base, disks.root / "block")
    disks.cover()
    found = disks.check_overlay()
    assert found["ok"], found
    assert found["notes"] == [check.UNFINISHED]


def test_damage_in_the_guests_filesystem_is_told(disks: Disks) -> None:
    disks.cover()
    disks.io(f"write -P 0 {bitmap_block(disks.base)}k 1k")
    found = disks.check_overlay()
    assert not found["ok"]
    assert any("lock bitmap" in note for note in found["notes"]), found
    assert not any("Pass 1" in note or "? no" in note or "files (" in note for note in found["notes"])


def test_damage_behind_a_journal_is_told(disks: Disks) -> None:
    bitmap, _ = leave_a_journal(disks.base, disks.root / "block")
    clobber(disks.base, bitmap + 1, bytes(1024))  # another one, of which no journal knows
    disks.cover()
    found = disks.check_overlay()
    assert not found["ok"]
    assert found["notes"][0] == check.UNFINISHED
    assert len(found["notes"]) > 1


def test_a_disk_that_holds_no_filesystem(disks: Disks) -> None:
    disks.cover()
    disks.io("write -z 0 4k")
    found = disks.check_overlay()
    assert (found["ok"], found["notes"]) == (False, ["it holds no ext4 filesystem"])


def damage_a_table(overlay: Path) -> None:
    """Let the first entry of the first L2 table that there is point outside the file."""
    data = bytearray(overlay.read_bytes())
    entries, table = struct.unpack_from(">I", data, 36)[0], struct.unpack_from(">Q", data, 40)[0]
    offsets = [struct.unpack_from(">Q", data, table + 8 * i)[0] & 0x00FFFFFFFFFFFE00 for i in range(entries)]
    second = next(offset for offset in offsets if offset)
    at = next(at for at in range(second, second + 65536, 16) if any(data[at : at + 8]))
    struct.pack_into(">Q", data, at, 1 << 63 | 0x12340000)
    overlay.write_bytes(data)


@pytest.mark.parametrize("closed", [True, False])
def test_damage_in_the_qcow2s_tables_is_told(disks: Disks, closed: bool) -> None:
    disks.cover()
    disks.io("write -P 7 40M 1M", *(() if closed else ("flush", "abort")), status=0 if closed else -6)
    damage_a_table(disks.overlay)
    found = disks.check_overlay()
    assert not found["ok"]
    assert any("errors in its tables" in note for note in found["notes"]), found
    assert found["notes"][-1] == "the filesystem in it was not looked at"
    assert (check.NOT_CLOSED in found["notes"]) is not closed


def flip(overlay: Path, offset: int, value: bytes) -> None:
    with overlay.open("r+b") as file:
        file.seek(offset)
        file.write(value)


@pytest.mark.parametrize(
    ("offset", "value", "said"),
    [
        (79, b"\x12", "marked it as corrupt"),
        (79, b"\x14", "features that banger gives to no disk"),  # its data in another file
        (35, b"\x02", "features that banger gives to no disk"),  # LUKS
        (0, b"QFJ\xfb", "no qcow2"),
        (7, b"\x02", "no qcow2 of version 3"),
        (8, b"\xff" * 8, "damaged header"),
        (16, b"\0\0\xff\xff", "damaged header"),
    ],
)
def test_a_header_that_should_not_be_is_opened_by_no_program(
    disks: Disks, monkeypatch: pytest.MonkeyPatch, offset: int, value: bytes, said: str
) -> None:
    disks.cover()
    flip(disks.overlay, offset, value)
    monkeypatch.setenv("PATH", str(stand_in(disks.root, "exit 99")))
    found = disks.check_overlay()
    assert not found["ok"]
    assert said in found["notes"][0]


@pytest.mark.parametrize("name", ["other.ext4", "/etc/passwd"])
def test_an_overlay_of_something_else_is_opened_by_no_program(
    disks: Disks, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    other = disks.root / "other.ext4"
    shutil.copy(disks.base, other)
    disks.cover(other)
    if name.startswith("/"):
        data = disks.overlay.read_bytes()
        offset, size = struct.unpack_from(">QI", data, 8)
        flip(disks.overlay, 16, struct.pack(">I", len(name)))
        flip(disks.overlay, offset, name.encode().ljust(size, b"\0"))
    monkeypatch.setenv("PATH", str(stand_in(disks.root, "exit 99")))
    found = disks.check_overlay()
    assert not found["ok"]
    assert f"lies over {other if not name.startswith('/') else name} (raw)" in found["notes"][0]


@pytest.mark.parametrize("gone", ["overlay", "base"])
def test_a_file_that_is_missing_is_told(disks: Disks, gone: str) -> None:
    disks.cover()
    (disks.overlay if gone == "overlay" else disks.base).unlink()
    told = Told()
    found = asyncio.run(check.check_overlay(disks.overlay, disks.base, told, told.room))
    assert not found["ok"]
    assert "is missing" in found["notes"][0]


@pytest.mark.parametrize("closed", [True, False])
def test_without_room_nothing_is_written(disks: Disks, closed: bool) -> None:
    disks.cover()
    disks.io("write -P 7 40M 1M", *(() if closed else ("flush", "abort")), status=0 if closed else -6)
    with pytest.raises(HostRequirement):
        disks.check_overlay(Told(1000))
    assert [path.name for path in disks.vm.iterdir()] == ["root.qcow2"]


def stand_in(root: Path, line: str) -> Path:
    """A directory with a qemu-img of our own."""
    (directory := root / "bin").mkdir()
    (directory / "qemu-img").write_text(f"#!/bin/sh\n{line}\n")
    (directory / "qemu-img").chmod(0o755)
    return directory


def test_cancelled_it_ends_what_it_started_and_removes_its_files(disks: Disks, monkeypatch: pytest.MonkeyPatch) -> None:
    disks.cover()
    mark = disks.root / "began"
    real = shutil.which("qemu-img")
    line = f'case $1 in convert) touch {mark}; exec sleep 300;; *) exec {real} "$@";; esac'
    monkeypatch.setenv("PATH", f"{stand_in(disks.root, line)}:{os.environ['PATH']}")
    told = Told()

    async def main() -> None:
        work = asyncio.create_task(check.check_overlay(disks.overlay, disks.base, told, told.room))
        async with asyncio.timeout(20):
            await file_appears(mark)
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work

    asyncio.run(main())
    assert [path.name for path in disks.vm.iterdir()] == ["root.qcow2"]
    assert not [child for child in psutil.Process().children() if child.name() == "sleep"]


def test_a_program_that_talks_without_an_end_fills_no_memory(disks: Disks, monkeypatch: pytest.MonkeyPatch) -> None:
    disks.cover()
    line = "head -c 50000000 /dev/zero | tr '\\0' x >&2; echo >&2; echo the end >&2; exit 1"
    monkeypatch.setenv("PATH", f"{stand_in(disks.root, line)}:{os.environ['PATH']}")
    found = disks.check_overlay()
    assert not found["ok"]
    assert sum(len(note) for note in found["notes"]) < 1000


def test_a_sound_raw_disk(disks: Disks) -> None:
    shutil.copy(disks.base, disks.raw)
    assert disks.check_raw() == {"part": "work disk", "ok": True, "notes": []}


def test_a_raw_disk_with_a_journal_to_replay(disks: Disks) -> None:
    shutil.copy(disks.base, disks.raw)
    leave_a_journal(disks.raw, disks.root / "block")
    found = disks.check_raw()
    assert (found["ok"], found["notes"]) == (True, [check.UNFINISHED])


def test_a_journal_that_cannot_be_read_is_damage(disks: Disks) -> None:
    shutil.copy(disks.base, disks.raw)
    _, journal = leave_a_journal(disks.raw, disks.root / "block")
    clobber(disks.raw, journal, os.urandom(1024))
    found = disks.check_raw()
    assert not found["ok"]
    assert any("journal" in note for note in found["notes"][1:]), found


def test_errors_that_the_guest_noted_are_told(disks: Disks) -> None:
    shutil.copy(disks.base, disks.raw)
    debugfs(disks.raw, "set_super_value state 3")
    found = disks.check_raw()
    assert not found["ok"]
    assert check.NOTED in found["notes"]


def test_names_in_a_damaged_filesystem_do_nothing_to_a_terminal(disks: Disks) -> None:
    shutil.copy(disks.base, disks.raw)
    (evil := disks.root / "evil").write_text("x")
    debugfs(disks.raw, f'write {evil} "a\x1b[2J\x07b"', 'set_inode_field "a\x1b[2J\x07b" links_count 7')
    found = disks.check_raw()
    assert not found["ok"]
    assert all(note.isprintable() for note in found["notes"])


def test_what_is_no_filesystem_or_not_there(disks: Disks) -> None:
    assert disks.check_raw()["notes"] == ["work.ext4 is missing"]
    disks.raw.write_bytes(b"x" * 500)
    assert disks.check_raw()["notes"] == ["it holds no ext4 filesystem"]
