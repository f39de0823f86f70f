"""opencode for an image: one pinned program out of its npm package, which is fetched once and kept.

Nothing of npm runs, and no path out of the package is used.
"""

import base64
import hashlib
from dataclasses import dataclass
from pathlib import Path

from banger.images.npm import find_registry, tarball_url
from banger.model.errors import BangerError, HostRequirement, Invalid
from banger.model.progress import Progress
from banger.system.archive import BadArchive, NoRoom, open_archive, write_member
from banger.system.download import download
from banger.system.files import in_thread, path_in_root

PROGRAM = "/usr/local/bin/opencode"
LICENCE = "/usr/share/doc/opencode/copyright"
PROGRAM_MAX = 400 * 1024 * 1024
PACKAGE_MAX = 256 * 1024 * 1024
DOWNLOAD_S = 3600.0
_UNPACKED_MAX = PROGRAM_MAX + 16 * 1024 * 1024
_LICENCE_MAX = 1024 * 1024
_MEMBERS_MAX = 1000
_WITHOUT = "--no-opencode leaves opencode out"


@dataclass(frozen=True)
class Build:
    """A version of opencode for a C library: its npm package, and the package's digest as npm writes it."""

    package: str
    version: str
    integrity: str  # sha512-BASE64

    @property
    def file_name(self) -> str:
        """What the package is called in the cache: another digest is another file."""
        return f"{self.package}-{self.version}-{base64.b64decode(self.integrity[7:]).hex()[:16]}.tgz"

    @property
    def manifest(self) -> dict[str, str]:
        """How it is listed among an image's packages."""
        return {"name": self.package, "version": self.version, "arch": "amd64"}


BUILDS = {
    "glibc": Build(
        "opencode-linux-x64",
        "1.18.34",
        "sha512-RTAMjCve4euxP2QKLuvRmdoW5J5DQK1DiZqt+7slfixyjAEi79QC2Df2oYKogibaAI4IEU8uzenoJeEl3k+UEw==",
    ),
    # needs libstdc++ and libgcc in the image
    "musl": Build(
        "opencode-linux-x64-musl",
        "1.18.32",
        "sha512-ktS7x5Ms+sVMCAb2oRpPKGk10isRjHkwBz6ordNOlx0epx6JQPsTydzJmpLBSdsiFAkfmZoBiYayKDXXU+rwXA==",
    ),
}


@dataclass(frozen=True)
class Package:
    """The package's file in the cache, and where to fetch it from; None when the file is there and sound."""

    build: Build
    file: Path
    url: str | None


async def locate(build: Build, downloads: Path, npm_registry: str | None, *, offline: bool = False) -> Package:
    """Where the package is or will come from. With a sound file in the cache no registry is asked for.

    Raises what `find_registry` does, and `HostRequirement` when it would have to be fetched `offline`.
    """
    file = downloads / build.file_name
    if await in_thread(_is_sound, file, build):
        return Package(build, file, None)
    if offline:
        raise HostRequirement(
            f"opencode {build.version} is not in the cache", hint=_and("do it once without --offline, with a network")
        )
    registry = await find_registry(npm_registry)
    return Package(build, file, tarball_url(registry, build.package, build.version))


async def fetch(package: Package, progress: Progress) -> None:
    """Have the verified package in the cache. What a failure leaves there is at most what came, to go on from.

    Raises `Invalid` (a wrong digest), and what `download` does, with the way around it in the hint.
    """
    if package.url is None:
        progress.note(f"opencode {package.build.version} is in the cache")
        return
    package.file.parent.mkdir(parents=True, mode=0o700, exist_ok=True)
    package.file.unlink(missing_ok=True)  # it is not sound
    try:
        if await _download(package, package.url, progress):
            return
        # what an earlier download left may have been another server's
        progress.note("the digest is wrong; what an earlier download had left is fetched again")
        await _download(package, package.url, progress)
    except BangerError as error:
        raise type(error)(error.message, hint=_and(error.hint), details=error.details) from error


async def _download(package: Package, url: str, progress: Progress) -> bool:
    """False for a wrong digest of what an earlier download had begun; `Invalid` for one of what came now."""

    def told(done: int, total: int | None) -> None:
        progress.progress(done, total, "bytes")

    got = await download(url, package.file, size_limit=PACKAGE_MAX, progress=told)
    if await in_thread(_is_sound, package.file, package.build):
        return True
    package.file.unlink()
    if got.resumed_at:
        return False
    raise Invalid(
        f"the package from {url} is not the one that is expected: its sha512 is wrong",
        hint="check npm_registry; nothing of the package was used",
        details={"expected": package.build.integrity, "source": url},
    )


def _and(hint: str) -> str:
    return f"{hint}; {_WITHOUT}" if hint else _WITHOUT


def _is_sound(file: Path, build: Build) -> bool:
    """Whether the file is there with the digest that is pinned."""
    try:
        with file.open("rb") as opened:
            digest = hashlib.file_digest(opened, "sha512").digest()
    except FileNotFoundError:
        return False
    return f"sha512-{base64.b64encode(digest).decode()}" == build.integrity


def install(file: Path, root: Path) -> None:
    """Put the program into a root tree, 0755 of root's, and its licence beside the others if the package has one.

    Raises `Invalid` for a package that is not opencode's, `HostRequirement` when the disk is full.
    """
    wanted = {
        "package/bin/opencode": (PROGRAM, 0o755, PROGRAM_MAX),
        "package/LICENSE": (LICENCE, 0o644, _LICENCE_MAX),
    }
    found = set()
    try:
        with open_archive(file, unpacked_max=_UNPACKED_MAX) as members:
            for number, member in enumerate(members):
                if number >= _MEMBERS_MAX:
                    raise BadArchive(f"it has more than {_MEMBERS_MAX} members")
                if member.name not in wanted:
                    continue
                place, mode, largest = wanted[member.name]
                if place in found:
                    raise BadArchive(f"it has {member.name} twice")
                write_member(members, member, _place(root, place), mode=mode, largest=largest)
                found.add(place)
    except BadArchive as error:
        raise _bad(str(error)) from error
    except NoRoom as error:
        raise HostRequirement(
            "there is no room for opencode beside the new image", hint=_and("free some space on the state's disk")
        ) from error
    if PROGRAM not in found:
        raise _bad("it has no package/bin/opencode")


def _place(root: Path, guest_path: str) -> Path:
    target = path_in_root(root, guest_path)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    return target


def _bad(what: str) -> Invalid:
    return Invalid(f"the package of opencode cannot be used: {what}", hint=_WITHOUT)
