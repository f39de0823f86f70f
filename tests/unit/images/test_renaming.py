"""An image gets another name whole or not at all; and what changes images may be killed anywhere."""

import asyncio
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from banger.images import renaming
from banger.images.catalog import MOVING, check_free, find_image, list_images, part_path
from banger.images.locks import image_in_use
from banger.images.renaming import rename_image
from banger.model.errors import Conflict, Invalid, NotFound, Timeout
from banger.model.image import Image
from banger.paths import Paths
from banger.system.locks import FileLock
from tests.unit.images.older import make_older, publish_small, rewrite, written

ROOT = Path(__file__).parents[3]


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    made = Paths(tmp_path / "state", tmp_path / "run", tmp_path / "cache")
    publish_small(made, "base")
    publish_small(made, "child", parents=("base", "gone"))
    return made


def images(paths: Paths) -> list[Image]:
    """All there are, and nothing else may be there."""
    found = list_images(paths)
    assert [path.name for path in sorted(paths.images.iterdir())] == [image.name for image in found]
    return found


def test_all_of_it_goes_by_the_new_name(paths: Paths) -> None:
    before = find_image(paths, "base")
    image = asyncio.run(rename_image(paths, "base", "other"))
    assert find_image(paths, "other") == image
    assert (image.parts, image.created_at) == (before.parts, before.created_at)
    assert part_path(paths, image, "root").read_bytes() == b"root"
    assert find_image(paths, "child").parents == ("other", "gone")
    assert {image.name for image in images(paths)} == {"child", "other"}
    assert paths.image("other").metadata.stat().st_mode & 0o222 == 0
    with pytest.raises(NotFound, match="no image base"):
        asyncio.run(rename_image(paths, "base", "again"))


def test_an_older_one_is_of_the_present_format_then(paths: Paths) -> None:
    make_older(paths, "older", "no manifest", helper="ping_helper")
    image = asyncio.run(rename_image(paths, "older", "newer"))
    assert find_image(paths, "newer").parts == image.parts
    assert written(paths, "newer")["format"] == 2


def test_a_taken_name_no_name_a_damaged_image_and_one_in_use_are_refused(paths: Paths) -> None:
    before = images(paths)
    with pytest.raises(Conflict, match="an image child already"):
        asyncio.run(rename_image(paths, "base", "child"))
    with pytest.raises(Conflict, match="an image base already"):
        asyncio.run(rename_image(paths, "base", "base"))
    with pytest.raises(Invalid, match="valid image name"):
        asyncio.run(rename_image(paths, "base", "../other"))
    with image_in_use(paths.image("base").root), pytest.raises(Conflict, match="base is in use"):
        asyncio.run(rename_image(paths, "base", "other"))
    assert images(paths) == before
    rewrite(paths, "child", {"name": "child"})
    with pytest.raises(Invalid, match="child is damaged"):
        asyncio.run(rename_image(paths, "child", "other"))


def test_when_a_child_cannot_be_told_everything_is_as_before(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    publish_small(paths, "another", parents=("base",))
    before = images(paths)
    monkeypatch.setattr(renaming, "_LOCK_S", 0.2)
    lock = FileLock(paths.image("child").lock)
    assert lock.try_acquire()
    try:
        with pytest.raises(Timeout):
            asyncio.run(rename_image(paths, "base", "other"))
    finally:
        lock.release()
    assert images(paths) == before


def test_a_cancelled_one_is_taken_back(paths: Paths) -> None:
    before = images(paths)
    lock = FileLock(paths.image("child").lock)
    assert lock.try_acquire()

    async def scenario() -> None:
        work = asyncio.create_task(rename_image(paths, "base", "other"))
        await asyncio.sleep(0.3)
        assert not paths.image("base").directory.exists()
        lock.release()
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work

    asyncio.run(scenario())
    assert images(paths) == before


def test_who_publishes_meanwhile_gets_neither_name(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    """An import learns the name of what it makes late."""
    told = renaming._set_parents

    async def meanwhile(paths: Paths, child: str, parents: tuple[str, ...]) -> None:
        with pytest.raises(Conflict):
            check_free(paths, "base")
        if not paths.image("other").directory.exists():
            paths.image("other").directory.mkdir()
        await told(paths, child, parents)

    before = images(paths)
    monkeypatch.setattr(renaming, "_set_parents", meanwhile)
    with pytest.raises(Conflict, match="an image other already"):
        asyncio.run(rename_image(paths, "base", "other"))
    paths.image("other").directory.rmdir()
    assert images(paths) == before


def test_at_the_next_start_a_damaged_one_has_its_old_name_and_a_taken_name_stays_taken(paths: Paths) -> None:
    base = paths.image("base")
    rewrite(paths, "base", {"name": "evil/../../name"})
    base.directory.rename(paths.images / f"{MOVING}base")
    asyncio.run(renaming.sweep(paths))
    assert base.directory.is_dir()
    rewrite(paths, "base", {**written(paths, "child"), "name": "child"})
    base.directory.rename(paths.images / f"{MOVING}base")
    asyncio.run(renaming.sweep(paths))
    assert (paths.images / f"{MOVING}base").is_dir(), "nothing is lost"
    assert find_image(paths, "child").name == "child"


def killed(*words: str) -> int:
    """How often the program in killed.py was killed; it looks for itself at what was left each time."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.unit.images.killed", *words],
        env={**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"},
        cwd=ROOT,
        capture_output=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    return int(done.stdout)


@pytest.mark.parametrize(("action", "steps"), [("repair", 20), ("rename", 25), ("delete", 6)])
def test_killed_at_any_step_an_image_is_as_before_or_done_and_never_worse(
    tmp_path: Path, action: str, steps: int
) -> None:
    assert killed(action, str(tmp_path / "x")) >= steps


@pytest.mark.parametrize("action", ["repair", "rename"])
def test_a_start_that_is_killed_as_well_is_finished_by_the_next(tmp_path: Path, action: str) -> None:
    seeded = random.Random(f"images {action}")
    numbers = [number for _ in range(12) for number in (seeded.randint(4, 36), seeded.randint(1, 25))]
    assert killed(action, str(tmp_path / "x"), *map(str, numbers)) >= 12
