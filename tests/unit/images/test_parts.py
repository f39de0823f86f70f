"""Parts that are replaced while the image is in use."""

import asyncio
import errno
from pathlib import Path

import pytest

from banger.images import parts
from banger.images.catalog import find_image, part_path, workspace
from banger.images.initramfs import pack
from banger.images.parts import bring_up_to_date, replace_parts, sweep_parts
from banger.model.errors import HostRequirement, Timeout
from banger.model.image import INIT_VERSION, WORK_SEED, Image
from banger.paths import Paths
from banger.system.locks import FileLock
from tests.unit.images.tiny import key, make_image, needs_e2fsprogs

pytestmark = needs_e2fsprogs
OLD, NEW = key("O"), key("N")


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return Paths(tmp_path / "state", tmp_path / "run", tmp_path / "cache")


def unpacked(initramfs: bytes) -> dict[str, bytes]:
    """As the kernel does it: archive after archive, with zeros between them, later files instead of earlier ones."""
    found, at = {}, 0
    while at < len(initramfs):
        if initramfs[at : at + 4] == bytes(4):
            at += 4
            continue
        assert initramfs[at : at + 6] == b"070701", at
        fields = [int(initramfs[at + 6 + 8 * n : at + 14 + 8 * n], 16) for n in range(13)]
        size, length = fields[6], fields[11]
        name = initramfs[at + 110 : at + 110 + length - 1].decode()
        start = at + -(-(110 + length) // 4) * 4
        if name != "TRAILER!!!":
            found[name] = initramfs[start : start + size]
        at = start + -(-size // 4) * 4
    return found


def test_an_older_image_gets_this_bangers_first_process_and_keeps_all_else(paths: Paths) -> None:
    image = make_image(paths, "debian", OLD.line, older=True)
    before = part_path(paths, image, "initramfs")
    assert unpacked(before.read_bytes())["init"].startswith(b"#!/bin/ol")
    made = asyncio.run(bring_up_to_date(paths, image))
    assert made.init_version == INIT_VERSION
    assert made == find_image(paths, "debian")
    assert unpacked(part_path(paths, made, "initramfs").read_bytes()) == unpacked(pack(b"box", []))
    assert before.exists(), "a machine may be about to open it"
    assert asyncio.run(bring_up_to_date(paths, made)) is made
    sweep_parts(paths)
    assert not before.exists()
    assert find_image(paths, "debian") == made
    assert {path.name for path in paths.images.iterdir()} == {"debian"}


def test_ten_who_meet_an_older_image_bring_it_up_to_date_once(paths: Paths) -> None:
    image = make_image(paths, "debian", OLD.line, older=True)

    async def all_at_once() -> list[Image]:
        return await asyncio.gather(*(bring_up_to_date(paths, image) for _ in range(10)))

    made = asyncio.run(all_at_once())
    assert all(image == find_image(paths, "debian") for image in made)
    assert len(list(paths.image("debian").directory.glob("initramfs*"))) == 2


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS])
def test_an_image_that_cannot_be_written_is_told_with_the_way_out(
    paths: Paths, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = make_image(paths, "debian", OLD.line, older=True)

    def refuses(path: Path) -> FileLock:
        raise OSError(number, "no")

    monkeypatch.setattr(parts, "FileLock", refuses)
    with pytest.raises(HostRequirement) as caught:
        asyncio.run(bring_up_to_date(paths, image))
    assert "--no-work-disk" in caught.value.hint
    assert find_image(paths, "debian") == image


async def _new_seed(paths: Paths, image: Image, fingerprint: str) -> Image:
    async with workspace(paths) as work:
        seed = work / "work-seed.ext4"
        seed.write_bytes(fingerprint.encode())
        return await replace_parts(paths, image, {WORK_SEED: seed}, seed_key=fingerprint)


def test_a_replaced_seed_is_there_for_those_who_open_it_now_and_gone_later(paths: Paths) -> None:
    first = make_image(paths, "debian", OLD.line, seed_key="one")
    second = asyncio.run(_new_seed(paths, first, "two"))
    assert part_path(paths, first, WORK_SEED).exists()
    third = asyncio.run(_new_seed(paths, second, "three"))
    assert not part_path(paths, first, WORK_SEED).exists()
    assert part_path(paths, second, WORK_SEED).exists()
    sweep_parts(paths)
    assert not part_path(paths, second, WORK_SEED).exists()
    assert part_path(paths, third, WORK_SEED).read_bytes() == b"three"
    assert part_path(paths, third, WORK_SEED).stat().st_mode & 0o222 == 0


def test_who_comes_second_changes_nothing_and_gets_what_the_first_one_made(paths: Paths) -> None:
    seen = make_image(paths, "debian", OLD.line, seed_key="one")
    first = asyncio.run(_new_seed(paths, seen, "two"))
    assert asyncio.run(_new_seed(paths, seen, "three")) == first
    assert find_image(paths, "debian").seed_key == "two"
    assert len(list(paths.image("debian").directory.glob("work-seed*"))) == 2


def test_a_change_of_another_part_meanwhile_is_kept(paths: Paths) -> None:
    seen = make_image(paths, "debian", OLD.line, older=True)
    asyncio.run(bring_up_to_date(paths, seen))
    made = asyncio.run(_new_seed(paths, seen, "two"))
    assert (made.init_version, made.seed_key) == (INIT_VERSION, "two")
    assert find_image(paths, "debian") == made


def test_who_holds_the_lock_is_waited_for_and_a_sweep_leaves_the_image_alone(
    paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = make_image(paths, "debian", OLD.line, seed_key="one")
    (paths.image("debian").directory / "work-seed-00000000.ext4").write_text("in the making")
    held = FileLock(paths.image("debian").lock)
    assert held.try_acquire()
    monkeypatch.setattr(parts, "_LOCK_S", 0.2)
    with pytest.raises(Timeout):
        asyncio.run(_new_seed(paths, image, "two"))
    sweep_parts(paths)
    assert (paths.image("debian").directory / "work-seed-00000000.ext4").exists()

    async def scenario() -> Image:
        monkeypatch.setattr(parts, "_LOCK_S", 20.0)
        work = asyncio.create_task(_new_seed(paths, image, "two"))
        await asyncio.sleep(0.2)
        assert not work.done()
        held.release()
        return await work

    assert asyncio.run(scenario()).seed_key == "two"
    sweep_parts(paths)
    assert not (paths.image("debian").directory / "work-seed-00000000.ext4").exists()
