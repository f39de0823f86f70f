"""What a bootstrap keeps for the next one: packages, and the package lists that apt has verified.

apt compares only the size of a package that it finds, and lists that it does not fetch are believed as they are: what
anybody but root can have put there is not used.
"""

import hashlib
import os
import re
import secrets
import shutil
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path

from banger.system.files import in_thread, sync_path
from banger.system.locks import FileLock

ARCHIVES, LISTS = Path("var/cache/apt/archives"), Path("var/lib/apt/lists")
UNUSED_S = 90 * 86400.0  # packages that nothing needed for so long go
LISTS_MAX = 4  # lists of so many different sources are kept
_LOCK_S = 300.0
_RELEASE_MAX = 4 * 1024 * 1024
_VALID_UNTIL = re.compile(r"^Valid-Until: (.+)$", re.MULTILINE)


@dataclass(frozen=True)
class PackageLists:
    """apt's lists of some sources: when they were the mirror's, and when the first of them expires, if one does."""

    directory: Path
    fetched_at: datetime
    valid_until: datetime | None

    @property
    def day(self) -> str:
        """When they were fetched, such as 2026-11-20."""
        return self.fetched_at.date().isoformat()

    @property
    def expired(self) -> str:
        """The day on which they expired; empty when they have not."""
        due = self.valid_until
        return due.date().isoformat() if due is not None and due < datetime.now(UTC) else ""


class PackageCache:
    """One directory for a suite, of root's alone; bootstraps that run at once do not meet in it."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    async def lists(self, sources: Sequence[str]) -> PackageLists | None:
        """The lists that were kept of exactly these sources."""
        async with self._alone() as ours:
            return await in_thread(self._find_lists, sources) if ours else None

    async def fill(self, root: Path, lists: PackageLists | None) -> frozenset[str]:
        """Put the packages and lists into a root, as copies, as what runs there may write; the packages' files."""
        async with self._alone() as ours:
            return await in_thread(self._fill, root, lists, ours)

    async def keep(
        self, root: Path, more: Iterable[Path], sources: Sequence[str] | None, unused: frozenset[str]
    ) -> None:
        """Take over a root's packages and `more`, and its lists as those of `sources`, if given; empty the archives.

        `unused` are packages that were filled in and that nothing needed.
        """
        async with self._alone() as ours:
            if ours:
                used = [file for file in sorted((root / ARCHIVES).glob("*.deb")) if file.name not in unused]
                await in_thread(self._keep_packages, [*used, *more])
                if sources is not None:
                    await in_thread(self._keep_lists, root / LISTS, sources)
        await in_thread(_empty, root / ARCHIVES)

    @asynccontextmanager
    async def _alone(self) -> AsyncIterator[bool]:
        """Whether the directory can be used; nobody else does meanwhile. Raises `Timeout`."""
        await in_thread(self._directory.mkdir, parents=True, mode=0o700, exist_ok=True)
        if not _only_ours(self._directory):
            yield False
            return
        lock = FileLock(self._directory / "lock")
        await lock.acquire(_LOCK_S)
        try:
            await in_thread(self._sweep)
            yield True
        finally:
            lock.release()

    def _sweep(self) -> None:
        """Remove what somebody who was killed had begun."""
        for left in self._directory.glob(".*"):
            _remove(left)

    def _begin(self) -> Path:
        return self._directory / f".{secrets.token_hex(6)}"

    def _packages(self) -> list[Path]:
        return [file for file in sorted(self._directory.glob("*.deb")) if file.is_file() and not file.is_symlink()]

    def _fill(self, root: Path, lists: PackageLists | None, ours: bool) -> frozenset[str]:
        (root / ARCHIVES).mkdir(parents=True)
        packages = self._packages() if ours else []
        for package in packages:
            shutil.copyfile(package, root / ARCHIVES / package.name)
        if ours and lists is not None and lists.directory.is_dir():
            (root / LISTS).parent.mkdir(parents=True, exist_ok=True)
            shutil.copytree(lists.directory, root / LISTS)
        return frozenset(package.name for package in packages)

    def _keep_packages(self, packages: Sequence[Path]) -> None:
        for package in packages:
            place = self._directory / package.name
            if not place.exists():
                partial = self._begin()
                shutil.copyfile(package, partial)
                sync_path(partial)  # else a crash could leave one whose size alone is right
                partial.rename(place)
            os.utime(place)
        names, kinds = {package.name for package in packages}, {_kind(package.name) for package in packages}
        long_ago = time.time() - UNUSED_S
        for kept in self._packages():
            if kept.name not in names and (_kind(kept.name) in kinds or kept.stat().st_mtime < long_ago):
                kept.unlink()

    def _lists_of(self, sources: Sequence[str]) -> Path:
        digest = hashlib.sha256("\n".join(sources).encode()).hexdigest()
        return self._directory / f"lists-{digest[:16]}"

    def _find_lists(self, sources: Sequence[str]) -> PackageLists | None:
        directory = self._lists_of(sources)
        if directory.is_symlink() or not directory.is_dir():
            return None
        due = [date for file in directory.glob("*Release") if (date := _valid_until(file)) is not None]
        return PackageLists(
            directory, datetime.fromtimestamp(directory.stat().st_mtime, UTC), min(due) if due else None
        )

    def _keep_lists(self, lists: Path, sources: Sequence[str]) -> None:
        made = self._begin()
        made.mkdir(mode=0o755)
        for file in lists.iterdir():
            if file.is_file() and not file.is_symlink() and file.name != "lock":
                shutil.copyfile(file, made / file.name)
                sync_path(made / file.name)
        place = self._lists_of(sources)
        _remove(place)
        made.rename(place)
        kept = sorted(self._directory.glob("lists-*"), key=lambda path: path.stat().st_mtime, reverse=True)
        for old in kept[LISTS_MAX:]:
            _remove(old)


def _only_ours(directory: Path) -> bool:
    status = directory.lstat()
    return not directory.is_symlink() and status.st_uid == os.geteuid() and not status.st_mode & 0o022


def _kind(name: str) -> tuple[str, str]:
    """Package and architecture of NAME_VERSION_ARCH.deb: only one version is kept."""
    package, _, rest = name.partition("_")
    return package, rest.rpartition("_")[2]


def _valid_until(release: Path) -> datetime | None:
    """Until when a Release file is good; it may not say (its first lines do)."""
    with release.open(errors="replace") as file:
        match = _VALID_UNTIL.search(file.read(_RELEASE_MAX))
    try:
        return parsedate_to_datetime(match[1]).astimezone(UTC) if match else None
    except ValueError:
        return None


def _empty(archives: Path) -> None:
    for package in archives.glob("*.deb"):
        package.unlink()


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
