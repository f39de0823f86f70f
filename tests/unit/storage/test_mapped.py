"""A root disk of an image and what changed of it, with a device mapper that only keeps books."""

import asyncio
import contextlib
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from banger.model.errors import Conflict, HostRequirement, Invalid
from banger.storage import mapped
from banger.storage.mapped import attach_root, changes_bytes, create_changes, detach_root
from banger.system.devmapper import create_device
from tests.support.mapper import CREATE, Mapper, install

MIB = 1 << 20
VM = "0123456789ab"
NAME, BASE = f"banger-{VM}", f"banger-{VM}-base"
GIVEN_UP = struct.pack("<4sIII", b"SnAp", 0, 1, 8)
VALID = struct.pack("<4sIII", b"SnAp", 1, 1, 8)


@pytest.fixture
def mapper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Mapper:
    """Also loop devices that are none: the first has the number 7:100."""
    (tmp_path / "dev").mkdir()

    @contextlib.contextmanager
    def loop_device(file: Path, *, read_only: bool = False) -> Iterator[os.stat_result]:
        assert file.is_file()
        assert read_only == (file.name == "base.ext4")
        yield file.stat()

    monkeypatch.setattr(mapped, "loop_device", loop_device)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    return install(tmp_path / "dev", monkeypatch)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    (tmp_path / "base.ext4").write_bytes(bytes(MIB))
    return tmp_path / "base.ext4"


def used(size: int) -> int:
    """The bytes that the kernel's allocator has reached when every chunk was changed (dm-snap-persistent.c)."""
    free, committed, area, reached = 2, 0, 0, 2
    for _ in range(size // 4096):
        reached = max(reached, free + 1)
        free += 1
        if free % 257 == 1:  # where numbers go, no data does
            free += 1
        committed += 1
        if committed == 256:
            area, committed = area + 1, 0
            reached = max(reached, 1 + 257 * area + 1)
    return reached * 4096


@pytest.mark.parametrize("chunks", [1, 255, 256, 257, 511, 512, 513, 5000, 65536])
def test_there_is_room_for_a_disk_that_was_changed_everywhere(chunks: int) -> None:
    assert used(chunks * 4096) <= changes_bytes(chunks * 4096) <= used(chunks * 4096) + 257 * 4096


def test_a_disk_as_large_as_its_image_has_the_image_below(mapper: Mapper, base: Path, tmp_path: Path) -> None:
    assert asyncio.run(create_changes(VM, base, tmp_path / "root.cow", MIB)) == ""
    assert (tmp_path / "root.cow").stat().st_size == changes_bytes(MIB)
    assert (tmp_path / "root.cow").stat().st_mode & 0o777 == 0o600
    assert mapper.devices == {}
    device = asyncio.run(attach_root(VM, base, tmp_path / "root.cow", MIB))
    assert device == tmp_path / "dev/dm-0"
    assert list(mapper.devices) == [NAME]
    assert mapper.devices[NAME].table == [(0, MIB // 512, "snapshot", "0:0 0:0 P 8")]
    assert mapper.devices[NAME].live
    assert not mapper.devices[NAME].read_only


def test_a_larger_disk_has_zeros_behind_the_image(mapper: Mapper, base: Path, tmp_path: Path) -> None:
    changes = tmp_path / "root.cow"
    asyncio.run(create_changes(VM, base, changes, 2 * MIB))
    asyncio.run(attach_root(VM, base, changes, 5 * MIB))
    assert mapper.devices[BASE].table == [(0, 2048, "linear", "0:0 0"), (2048, 8192, "zero", "")]
    assert mapper.devices[BASE].read_only
    assert mapper.devices[NAME].table == [(0, 10240, "snapshot", "0:0 0:0 P 8")]
    assert changes.stat().st_size == changes_bytes(5 * MIB), "changes of a smaller disk do for a larger one"
    asyncio.run(attach_root(VM, base, changes, 3 * MIB))
    assert changes.stat().st_size == changes_bytes(5 * MIB), "nothing that was written is cut off"


def test_attaching_and_detaching_can_be_done_again(mapper: Mapper, base: Path, tmp_path: Path) -> None:
    asyncio.run(detach_root(VM))
    asyncio.run(create_changes(VM, base, tmp_path / "root.cow", 2 * MIB))
    for _ in range(2):
        asyncio.run(attach_root(VM, base, tmp_path / "root.cow", 2 * MIB))
        assert set(mapper.devices) == {NAME, BASE}
    for _ in range(2):
        asyncio.run(detach_root(VM))
        assert mapper.devices == {}


def test_what_a_crash_left_is_taken_away(mapper: Mapper, base: Path, tmp_path: Path) -> None:
    asyncio.run(create_changes(VM, base, tmp_path / "root.cow", 2 * MIB))
    asyncio.run(attach_root(VM, base, tmp_path / "root.cow", 2 * MIB))
    del mapper.devices[NAME]
    asyncio.run(detach_root(VM))
    assert mapper.devices == {}


def test_a_disk_in_use_goes_with_its_user_and_is_not_put_together_twice(
    mapper: Mapper, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mapped, "_GONE_S", 0.05)
    asyncio.run(create_changes(VM, base, tmp_path / "root.cow", 2 * MIB))
    asyncio.run(attach_root(VM, base, tmp_path / "root.cow", 2 * MIB))
    mapper.devices[NAME].open = 1
    asyncio.run(detach_root(VM))
    assert set(mapper.devices) == {NAME, BASE}
    made = mapper.told.count((CREATE, NAME))
    with pytest.raises(Conflict, match="in use"):
        asyncio.run(attach_root(VM, base, tmp_path / "root.cow", 2 * MIB))
    assert mapper.told.count((CREATE, NAME)) == made
    mapper.close(NAME)
    assert mapper.devices == {}


@pytest.mark.parametrize("kind", ["snapshot", "zero"])
def test_a_kernel_that_cannot_is_found_out_and_nothing_is_left(
    mapper: Mapper, base: Path, tmp_path: Path, kind: str
) -> None:
    mapper.refuses = kind
    said = asyncio.run(create_changes(VM, base, tmp_path / "root.cow", 2 * MIB))
    assert "Invalid argument" in said
    assert "\n" not in said
    assert mapper.devices == {}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base.ext4", "dev"]
    (tmp_path / "root.cow").write_bytes(b"")
    with pytest.raises(HostRequirement, match="Invalid argument"):
        asyncio.run(attach_root(VM, base, tmp_path / "root.cow", 2 * MIB))
    assert mapper.devices == {}


def test_without_root_or_a_device_mapper_nothing_is_tried(
    mapper: Mapper, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "dev/control").unlink()
    assert "cannot be used here" in asyncio.run(create_changes(VM, base, tmp_path / "root.cow", MIB))
    asyncio.run(detach_root(VM))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert "only root" in asyncio.run(create_changes(VM, base, tmp_path / "root.cow", MIB))
    assert mapper.told == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base.ext4", "dev"]


@pytest.mark.parametrize("step", ["create", "attach"])
def test_cancelling_leaves_nothing(
    mapper: Mapper, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    changes = tmp_path / "root.cow"
    if step == "attach":
        changes.write_bytes(b"")

    async def main() -> None:
        loop = asyncio.get_running_loop()
        work = create_changes(VM, base, changes, 2 * MIB)
        task = asyncio.create_task(work if step == "create" else _attach())

        def cancels(*words: object, **more: object) -> Path:
            if not task.cancelling():
                asyncio.run_coroutine_threadsafe(_cancel(task), loop).result(10)
            return create_device(*words, **more)  # type: ignore[arg-type]

        monkeypatch.setattr(mapped, "create_device", cancels)
        if step == "attach":
            work.close()
        with pytest.raises(asyncio.CancelledError):
            await task

    async def _attach() -> None:
        await attach_root(VM, base, changes, 2 * MIB)

    asyncio.run(main())
    assert mapper.devices == {}
    assert changes.exists() is (step == "attach")
    assert not list(tmp_path.glob(".root*"))


async def _cancel(task: "asyncio.Task[object]") -> None:
    task.cancel()


def test_changes_that_the_kernel_gave_up_are_taken_up_again(mapper: Mapper, base: Path, tmp_path: Path) -> None:
    changes = tmp_path / "root.cow"
    changes.write_bytes(GIVEN_UP + b"what was written")
    notes: list[str] = []
    asyncio.run(attach_root(VM, base, changes, MIB, notes.append))
    assert changes.read_bytes().startswith(VALID + b"what was written")
    assert len(notes) == 1
    asyncio.run(attach_root(VM, base, changes, MIB, notes.append))
    assert len(notes) == 1


@pytest.mark.parametrize(
    "content",
    [b"\x53\xef" * 8, b"SnAp", struct.pack("<4sIII", b"SnAp", 1, 2, 8), struct.pack("<4sIII", b"SnAp", 1, 1, 32)],
)
def test_a_file_of_something_else_is_refused_and_left_alone(
    mapper: Mapper, base: Path, tmp_path: Path, content: bytes
) -> None:
    changes = tmp_path / "root.cow"
    changes.write_bytes(content)
    with pytest.raises(Invalid, match="does not hold"):
        asyncio.run(attach_root(VM, base, changes, MIB))
    assert changes.read_bytes() == content
    assert mapper.devices == {}
