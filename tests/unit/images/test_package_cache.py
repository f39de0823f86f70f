"""What bootstraps leave to each other; nothing is started."""

import asyncio
import os
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from banger.images.package_cache import ARCHIVES, LISTS, LISTS_MAX, UNUSED_S, PackageCache

SOURCES = ["deb http://mirror.example/ bookworm main"]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "cache/bookworm"


@pytest.fixture
def cache(directory: Path) -> PackageCache:
    return PackageCache(directory)


def root_with(root: Path, *packages: str, release: str = "") -> Path:
    """A root after a bootstrap: archives, and lists with the leavings of apt."""
    (root / ARCHIVES).mkdir(parents=True)
    for package in packages:
        (root / ARCHIVES / package).write_text(package)
    (root / LISTS / "partial").mkdir(parents=True)
    (root / LISTS / "lock").touch()
    (root / LISTS / "mirror_InRelease").write_text(release or "Suite: bookworm\n")
    return root


def keep(cache: PackageCache, root: Path, *more: Path, unused: frozenset[str] = frozenset()) -> None:
    asyncio.run(cache.keep(root, more, SOURCES, unused))


def fill(cache: PackageCache, root: Path) -> frozenset[str]:
    async def filled() -> frozenset[str]:
        return await cache.fill(root, await cache.lists(SOURCES))

    return asyncio.run(filled())


def debs(directory: Path) -> set[str]:
    return {file.name for file in directory.glob("*.deb")}


def test_the_next_root_gets_the_packages_and_the_lists(cache: PackageCache, tmp_path: Path) -> None:
    kernel = tmp_path / "linux_1_amd64.deb"
    kernel.write_text("kernel")
    first = root_with(tmp_path / "first", "a_1_all.deb")
    keep(cache, first, kernel)
    assert debs(first / ARCHIVES) == set()
    assert fill(cache, tmp_path / "next") == {"a_1_all.deb", "linux_1_amd64.deb"}
    assert (tmp_path / "next" / ARCHIVES / "linux_1_amd64.deb").read_text() == "kernel"
    assert [file.name for file in (tmp_path / "next" / LISTS).iterdir()] == ["mirror_InRelease"]


def test_what_a_root_gets_is_a_copy_that_it_may_write_to(cache: PackageCache, tmp_path: Path) -> None:
    keep(cache, root_with(tmp_path / "first", "a_1_all.deb"))
    fill(cache, tmp_path / "next")
    (tmp_path / "next" / ARCHIVES / "a_1_all.deb").write_text("evil")
    fill(cache, tmp_path / "third")
    assert (tmp_path / "third" / ARCHIVES / "a_1_all.deb").read_text() == "a_1_all.deb"


def test_a_smaller_image_leaves_the_packages_of_a_larger_one(
    cache: PackageCache, directory: Path, tmp_path: Path
) -> None:
    keep(cache, root_with(tmp_path / "full", "a_1_all.deb", "git_1_amd64.deb"))
    filled = fill(cache, tmp_path / "minimal")
    asyncio.run(cache.keep(tmp_path / "minimal", [], None, filled - {"a_1_all.deb"}))
    assert debs(directory) == {"a_1_all.deb", "git_1_amd64.deb"}


def test_an_older_version_goes_when_another_was_needed_and_what_is_unused_goes_in_time(
    cache: PackageCache, directory: Path, tmp_path: Path
) -> None:
    keep(cache, root_with(tmp_path / "first", "a_1%3a1_all.deb", "a-b_1_all.deb", "old_1_all.deb"))
    long_ago = time.time() - UNUSED_S - 60
    os.utime(directory / "old_1_all.deb", (long_ago, long_ago))
    second = tmp_path / "second"
    unused = fill(cache, second)
    (second / ARCHIVES / "a_1%3a2_all.deb").write_text("newer")
    keep(cache, second, unused=unused)
    assert debs(directory) == {"a_1%3a2_all.deb", "a-b_1_all.deb"}


@pytest.mark.parametrize("make", ["writable", "link"])
def test_a_directory_that_others_can_write_to_is_not_used(
    cache: PackageCache, directory: Path, tmp_path: Path, make: str
) -> None:
    keep(cache, root_with(tmp_path / "first", "a_1_all.deb"))
    if make == "writable":
        directory.chmod(0o777)
    else:
        directory.rename(tmp_path / "elsewhere")
        directory.symlink_to(tmp_path / "elsewhere")
    assert fill(cache, tmp_path / "next") == set()
    assert not (tmp_path / "next" / LISTS).exists()
    keep(cache, root_with(tmp_path / "second", "b_1_all.deb"))
    assert debs(directory) == {"a_1_all.deb"}


def test_lists_are_of_their_sources_only_and_know_their_age(cache: PackageCache, tmp_path: Path) -> None:
    release = "Date: Thu, 20 Nov 2025 08:00:00 UTC\nValid-Until: Thu, 27 Nov 2025 08:00:00 UTC\nSHA256:\n"
    keep(cache, root_with(tmp_path / "first", release=release))
    assert asyncio.run(cache.lists(["deb http://other.example/ bookworm main"])) is None
    found = asyncio.run(cache.lists(SOURCES))
    assert found is not None
    assert found.day == datetime.now(UTC).date().isoformat()
    assert found.valid_until == datetime(2025, 11, 27, 8, tzinfo=UTC)
    assert found.expired == "2025-11-27"


@pytest.mark.parametrize("release", ["Suite: bookworm\n", "Valid-Until: tomorrow\n"])
def test_lists_that_do_not_say_do_not_expire(cache: PackageCache, tmp_path: Path, release: str) -> None:
    keep(cache, root_with(tmp_path / "first", release=release))
    found = asyncio.run(cache.lists(SOURCES))
    assert found is not None
    assert found.expired == ""


def test_lists_of_a_few_sources_are_kept(cache: PackageCache, directory: Path, tmp_path: Path) -> None:
    for number in range(LISTS_MAX + 2):
        asyncio.run(cache.keep(root_with(tmp_path / str(number)), [], [f"deb http://{number}/ x main"], frozenset()))
    assert len(list(directory.glob("lists-*"))) == LISTS_MAX


def test_what_a_killed_daemon_had_begun_goes(cache: PackageCache, directory: Path, tmp_path: Path) -> None:
    keep(cache, root_with(tmp_path / "first", "a_1_all.deb"))
    (directory / ".0123456789ab").mkdir()
    (directory / ".ba9876543210").write_text("half")
    fill(cache, tmp_path / "next")
    assert {path.name.partition("-")[0] for path in directory.iterdir()} == {"a_1_all.deb", "lists", "lock"}
