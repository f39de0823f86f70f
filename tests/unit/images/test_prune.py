"""What can be made again is taken away; what somebody uses, or may need, stays."""

import asyncio
import os
import time
from pathlib import Path

import pytest

from banger.images import prune
from banger.images.catalog import find_image, list_images, part_path
from banger.images.prune import DOWNLOADS, IMPORTS, LAYERS, PACKAGES, PARTS, Selection, measure, select, take_away
from banger.model.catalogue import PrunedKind
from banger.paths import Paths
from banger.system.locks import FileLock, lock_existing
from tests.unit.images.older import publish_small

DAY = 86400.0
NOW = time.time()


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return Paths(tmp_path / "state", tmp_path / "run", tmp_path / "cache")


def layer(paths: Paths, key: str, *, days: float, halves: str = "qcow2 json") -> None:
    """One that was last used so many days ago."""
    paths.layers.mkdir(parents=True, exist_ok=True)
    for suffix in halves.split():
        file = paths.layers / f"{key}.{suffix}"
        file.write_bytes(bytes(4096) if suffix == "qcow2" else b"{}")
        os.utime(file, (NOW - days * DAY, NOW - days * DAY))


def chosen(paths: Paths, kind: str, *, days: float = 14.0) -> set[str]:
    return {path.name for path in select(paths, kind, layers_older_than=NOW - days * DAY).entries}


def test_layers_that_were_not_used_for_long_go_with_both_their_files(paths: Paths) -> None:
    layer(paths, "old", days=20)
    layer(paths, "new", days=3)
    assert chosen(paths, LAYERS) == {"old.qcow2", "old.json"}
    assert chosen(paths, LAYERS, days=0) == {"old.qcow2", "old.json", "new.qcow2", "new.json"}
    os.utime(paths.layers / "old.json")
    assert chosen(paths, LAYERS) == set(), "it was used just now"


def test_a_layer_that_somebody_has_locked_stays(paths: Paths) -> None:
    layer(paths, "old", days=20)
    descriptor = lock_existing(paths.layers / "old.qcow2", shared=True)
    assert descriptor is not None
    assert chosen(paths, LAYERS, days=0) == set()
    os.close(descriptor)
    assert len(chosen(paths, LAYERS, days=0)) == 2


def test_half_a_layer_goes_after_a_day(paths: Paths) -> None:
    layer(paths, "making", days=0.5, halves="qcow2")
    layer(paths, "left", days=2, halves="qcow2")
    assert chosen(paths, LAYERS, days=0) == {"left.qcow2"}


def test_a_download_under_way_stays(paths: Paths) -> None:
    paths.downloads.mkdir(parents=True)
    (paths.downloads / "a.tgz").write_bytes(b"a")
    (partial := paths.downloads / "b.tgz.partial").write_bytes(b"b")
    descriptor = lock_existing(partial, shared=False)
    assert descriptor is not None
    assert chosen(paths, DOWNLOADS) == {"a.tgz"}
    os.close(descriptor)
    assert chosen(paths, DOWNLOADS) == {"a.tgz", "b.tgz.partial"}


def test_a_package_cache_that_a_bootstrap_reads_stays(paths: Paths) -> None:
    (cache := paths.cache / "debian" / "bookworm").mkdir(parents=True)
    (cache / "a.deb").write_bytes(b"a")
    lock = FileLock(cache / "lock")
    assert lock.try_acquire()
    assert chosen(paths, PACKAGES) == set()
    lock.release()
    assert chosen(paths, PACKAGES) == {"bookworm"}


def test_replaced_parts_go_and_images_stay(paths: Paths) -> None:
    image = publish_small(paths, "debian")
    where = paths.image("debian").directory
    (where / "work-seed-0123abcd.ext4").write_bytes(b"replaced")
    (where / "notes.txt").write_bytes(b"somebody's")
    assert chosen(paths, PARTS) == {"work-seed-0123abcd.ext4"}
    gone = taken(paths, PARTS)
    assert gone.files == 1
    assert find_image(paths, "debian") == image
    assert part_path(paths, image, "work-seed").exists()
    assert (where / "notes.txt").exists()
    assert [path.name for path in paths.images.iterdir()] == ["debian"]


def taken(paths: Paths, kind: str) -> PrunedKind:
    return asyncio.run(take_away(paths, lambda: select(paths, kind, layers_older_than=NOW), kind))


def test_whole_trees_are_measured_and_removed_and_their_places_stay(paths: Paths) -> None:
    tree = paths.imports / "half-done"
    (tree / "deep").mkdir(parents=True)
    for name in ("deep/a", "b"):
        (tree / name).write_bytes(bytes(range(256)) * 32)
    (tree / "c").hardlink_to(tree / "b")
    (tree / "link").symlink_to("/etc")
    package = paths.cache / "debian" / "bookworm" / "a.deb"
    package.parent.mkdir(parents=True)
    package.write_bytes(b"package")
    told = measure(select(paths, IMPORTS, layers_older_than=NOW))
    assert told.files == 4
    assert 16384 <= told.bytes < 40960
    assert taken(paths, IMPORTS) == told
    assert list(paths.imports.iterdir()) == []
    assert taken(paths, PACKAGES).files == 1
    assert not package.parent.exists()
    assert Path("/etc/passwd").exists()
    assert {path.name for path in paths.cache.iterdir()} == {"imports", "debian"}


def test_where_there_is_nothing_nothing_goes(paths: Paths) -> None:
    for kind in prune.KINDS:
        assert taken(paths, kind) == PrunedKind(kind)
    assert list_images(paths) == []


def test_what_a_killed_one_was_removing_is_removed_at_the_next_start(paths: Paths) -> None:
    (paths.imports / "left").mkdir(parents=True)

    async def interrupted() -> None:
        with pytest.raises(FileNotFoundError):
            await take_away(
                paths, lambda: Selection(IMPORTS, (paths.imports / "left", paths.imports / "gone")), IMPORTS
            )

    asyncio.run(interrupted())
    assert {path.name for path in paths.cache.iterdir()} == {"imports"}
    (paths.cache / ".pruned-dead" / "0").mkdir(parents=True)
    asyncio.run(prune.sweep(paths))
    assert {path.name for path in paths.cache.iterdir()} == {"imports"}
