"""Root disks for engines that read no overlays: what is tried, what is said, and that nothing half-made stays."""

import asyncio
import contextlib
import os
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from banger.model.errors import HostRequirement, Invalid
from banger.storage import copies as disk_copies
from banger.storage import overlays
from banger.storage.overlays import create_root_raw
from banger.system.files import copy_sparse
from tests.unit.images.recorder import Recorder

MIB = 1 << 20
VM = "0123456789ab"


class Told(Recorder):
    """Also how far it came; `first` is called at the first word of that."""

    def __init__(self, first: Callable[[], None] = lambda: None) -> None:
        super().__init__()
        self.seen_bytes: list[tuple[int, int | None]] = []
        self._first = first

    def progress(self, done: int, total: int | None, unit: str) -> None:
        assert unit == "bytes"
        if not self.seen_bytes:
            self._first()
        self.seen_bytes.append((done, total))


class Room:
    """Room that is asked for: how much, and whether it is held now."""

    def __init__(self, *, refuses: bool = False) -> None:
        self.asked: list[int] = []
        self.held = False
        self._refuses = refuses

    @contextlib.contextmanager
    def __call__(self, needed: int) -> Iterator[None]:
        self.asked.append(needed)
        if self._refuses:
            raise HostRequirement("the disk has too little room")
        self.held = True
        try:
            yield
        finally:
            self.held = False


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A sparse image: 20 MiB of data, holes before and behind it."""
    path = tmp_path / "base.ext4"
    with path.open("wb") as file:
        file.truncate(64 * MIB)
        file.seek(8 * MIB)
        file.write(os.urandom(20 * MIB))
    path.chmod(0o444)
    return path


@pytest.fixture
def only(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let this host be one that can do no more than is said."""

    def set_up(*, clone: bool = False, why_not: str = "there is no device-mapper") -> None:
        async def changes(vm_id: str, base: Path, path: Path, size: int) -> str:
            assert (vm_id, base.name) == (VM, "base.ext4")
            if not why_not:
                path.write_bytes(b"SnAp")
            return why_not

        def cloned(source: Path, target: Path) -> bool:
            if clone:
                target.write_bytes(source.read_bytes())
            return clone

        monkeypatch.setattr(overlays, "create_changes", changes)
        monkeypatch.setattr(overlays, "clone_file", cloned)

    return set_up


def make(base: Path, told: Told, room: Room, size: int | None = None) -> Awaitable[None]:
    where = base.parent
    return create_root_raw(VM, base, where / "root.ext4", where / "root.cow", size, told, room)


def names(where: Path) -> list[str]:
    return sorted(path.name for path in where.iterdir())


def run(work: Awaitable[Any]) -> None:
    async def main() -> None:
        await work

    asyncio.run(main())


def test_a_filesystem_that_can_gets_a_clone_and_nothing_is_said(base: Path, only: Callable[..., None]) -> None:
    only(clone=True)
    told, room = Told(), Room()
    run(make(base, told, room, 96 * MIB))
    assert names(base.parent) == ["base.ext4", "root.ext4"]
    root = base.parent / "root.ext4"
    assert root.stat().st_size == 96 * MIB
    assert root.stat().st_mode & 0o777 == 0o600
    assert root.read_bytes() == base.read_bytes() + bytes(32 * MIB)
    assert (told.notes, room.asked) == ([], [])


def test_device_mapper_comes_before_a_full_copy(base: Path, only: Callable[..., None]) -> None:
    only(why_not="")
    told, room = Told(), Room()
    run(make(base, told, room))
    assert names(base.parent) == ["base.ext4", "root.cow"]
    assert told.notes == ["this filesystem cannot share blocks (reflink): the root disk is a dm-snapshot of its image"]
    assert (told.seen_bytes, room.asked) == ([], [])


def test_a_full_copy_is_said_with_the_reason_its_progress_told_and_room_held(
    base: Path, only: Callable[..., None]
) -> None:
    only()
    room = Room()
    held: list[bool] = []
    told = Told(lambda: held.append(room.held))
    run(make(base, told, room, 96 * MIB))
    root = base.parent / "root.ext4"
    assert told.notes == [
        "this filesystem cannot share blocks (reflink), and there is no device-mapper: the root disk is a full copy"
    ]
    done = [done for done, _ in told.seen_bytes]
    assert done == sorted(done)
    assert told.seen_bytes[-1] == (20 * MIB, 20 * MIB)
    assert len(done) > 2
    assert room.asked == [base.stat().st_blocks * 512]
    assert held == [True]
    assert not room.held
    assert root.read_bytes() == base.read_bytes() + bytes(32 * MIB)
    assert root.stat().st_blocks * 512 < 21 * MIB, "holes are copied as holes"
    assert root.stat().st_mode & 0o777 == 0o600
    assert names(base.parent) == ["base.ext4", "root.ext4"]


def test_without_room_nothing_is_written(base: Path, only: Callable[..., None]) -> None:
    only()
    with pytest.raises(HostRequirement, match="too little room"):
        run(make(base, Told(), Room(refuses=True)))
    assert names(base.parent) == ["base.ext4"]


def test_cancelling_half_way_leaves_nothing(
    base: Path, only: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    only()
    half: list[int] = []

    def copies(source: Path, target: Path, told: Callable[[int, int], bool]) -> None:
        def slowly(done: int, total: int) -> bool:
            deadline = time.monotonic() + 10
            while done and told(done, total) and time.monotonic() < deadline:
                time.sleep(0.001)
            return told(done, total)

        copy_sparse(source, target, slowly)

    monkeypatch.setattr(disk_copies, "copy_sparse", copies)

    async def main() -> None:
        def cancel() -> None:
            half.extend(path.stat().st_size for path in base.parent.glob(".root.ext4.*"))
            task.cancel()

        room = Room()
        told = Told(cancel)
        task = asyncio.ensure_future(make(base, told, room))
        with pytest.raises(asyncio.CancelledError):
            await task
        assert told.seen_bytes[-1][0] < 20 * MIB
        assert not room.held

    asyncio.run(main())
    assert half == [64 * MIB], "it was not under way when it was cancelled"
    assert names(base.parent) == ["base.ext4"]


@pytest.mark.parametrize("clone", [True, False])
def test_shrinking_is_refused_with_the_reason_and_the_least(base: Path, only: Callable[..., None], clone: bool) -> None:
    only(clone=clone)
    with pytest.raises(Invalid, match="smaller than its image") as caught:
        run(make(base, Told(), Room(), 63 * MIB))
    assert "64 MiB" in caught.value.message
    assert "--disk 64M" in caught.value.hint
    assert names(base.parent) == ["base.ext4"]
