"""Packages from a mirror, and from the cache when it is gone: the real apt, in roots of its own, and a real server."""

import asyncio
import hashlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from banger.images.mmdebstrap import Recipe, install
from banger.images.package_cache import PackageCache, PackageLists
from banger.model.errors import CommandFailed, HostRequirement
from tests.support.mirror import Mirror, mirror
from tests.unit.images.recorder import Recorder

pytestmark = [pytest.mark.host, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]

# What mmdebstrap does with apt: the lists, a package, and an entry in dpkg's database.
FAKE = """#!/bin/sh
set -eu
update=yes
while [ "${1#--}" != "$1" ]; do
    case $1 in --skip=*update*) update=no ;; esac
    shift
done
root=$2 config=$2/apt.conf
shift 2
mkdir -p "$root/etc/apt/apt.conf.d" "$root/etc/apt/preferences.d" "$root/var/lib/apt/lists/partial" "$root/var/lib/dpkg"
mkdir -p "$root/var/cache/apt/archives/partial"
printf '%s\\n' "$@" >"$root/etc/apt/sources.list"
touch "$root/var/lib/dpkg/status"
cat >"$config" <<END
Dir "$root"; Dir::State::status "$root/var/lib/dpkg/status"; APT::Architecture "amd64"; APT::Sandbox::User "root";
Acquire::Retries::Delay "false"; Acquire::Languages "none";
END
export APT_CONFIG="$config"
[ $update = no ] || apt-get update --error-on=any || exit 25
cd "$root/var/cache/apt/archives"
apt-get download tiny
cd "$root/var/lib/dpkg"
printf '%s\\n' 'Package: tiny' 'Status: install ok installed' 'Version: 1:2' 'Architecture: all' >status
"""
CONTROL = (
    "Package: tiny\nVersion: 1:2\nArchitecture: all\nMaintainer: nobody <nobody@example.org>\nDescription: small\n"
)


@pytest.fixture
def package(tmp_path: Path) -> bytes:
    tree = tmp_path / "tiny"
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "DEBIAN/control").write_text(CONTROL)
    subprocess.run(
        ["dpkg-deb", "--root-owner-group", "-b", tree, tmp_path / "tiny.deb"], check=True, capture_output=True
    )
    return (tmp_path / "tiny.deb").read_bytes()


def serve(server: Mirror, package: bytes) -> None:
    """The smallest archive that apt takes."""
    digest = hashlib.sha256(package).hexdigest()
    entry = f"{CONTROL}Filename: pool/tiny_2_all.deb\nSize: {len(package)}\nSHA256: {digest}\n".encode()
    index = "main/binary-amd64/Packages"
    listed = f" {hashlib.sha256(entry).hexdigest()} {len(entry)} {index}"
    release = ["Suite: bookworm", "Codename: bookworm", "Components: main", "Architectures: amd64", "SHA256:", listed]
    server.files["/dists/bookworm/Release"] = "\n".join([*release, ""]).encode()
    server.files[f"/dists/bookworm/{index}"] = entry
    server.files["/pool/tiny_2_all.deb"] = package


@pytest.fixture
def server(package: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Mirror]:
    program = tmp_path / "bin/mmdebstrap"
    program.parent.mkdir()
    program.write_text(FAKE)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("no_proxy", "*")
    with mirror() as made:
        serve(made, package)
        yield made


class Bootstraps:
    """Roots that are made one after the other with the same cache."""

    def __init__(self, directory: Path, url: str) -> None:
        self.directory, self.count = directory, 0
        self.cache = directory / "cache"
        self.recorder = Recorder()
        self.recipe = Recipe("bookworm", [f"deb [trusted=yes] {url} bookworm main"], ["tiny"], ["linux-a"])

    def one(self, *, offline: bool = False) -> PackageLists | None:
        self.count += 1
        self.recorder = Recorder()
        self.root, kernel = (self.directory / f"{what}{self.count}" for what in ("root", "kernel"))
        made = install(self.recipe, self.root, kernel, PackageCache(self.cache), self.recorder, offline=offline)
        return asyncio.run(made)

    def has_tiny(self) -> bool:
        return "Package: tiny" in (self.root / "var/lib/dpkg/status").read_text()


@pytest.fixture
def bootstraps(server: Mirror, tmp_path: Path) -> Bootstraps:
    return Bootstraps(tmp_path, server.url)


def packages_asked(server: Mirror) -> int:
    return sum(path.startswith("/pool/") for path, _ in server.asked)


def test_the_mirror_is_asked_again_and_sends_no_package_twice(bootstraps: Bootstraps, server: Mirror) -> None:
    assert bootstraps.one() is None
    assert packages_asked(server) == 1
    server.asked.clear()
    assert bootstraps.one() is None
    assert "/dists/bookworm/Release" in {path for path, _ in server.asked}
    assert packages_asked(server) == 0
    assert bootstraps.has_tiny()


def test_offline_nobody_is_asked_though_there_would_be_somebody(bootstraps: Bootstraps, server: Mirror) -> None:
    bootstraps.one()
    server.asked.clear()
    lists = bootstraps.one(offline=True)
    assert lists is not None
    assert server.asked == []
    assert bootstraps.has_tiny()
    assert bootstraps.recorder.notes[0] == f"using the package lists of {lists.day} from the cache"
    assert not (bootstraps.root / "etc/apt/apt.conf.d/00offline").exists()


def test_a_mirror_that_is_gone_is_done_without_and_that_is_said(bootstraps: Bootstraps, package: bytes) -> None:
    bootstraps.one()
    bootstraps.recipe = Recipe(
        "bookworm", ["deb [trusted=yes] http://127.0.0.1:1 bookworm main"], ["tiny"], ["linux-a"]
    )
    with pytest.raises(CommandFailed) as caught:  # its lists are another's
        bootstraps.one()
    assert "--mirror" in caught.value.hint
    with mirror() as made:
        serve(made, package)
        bootstraps.recipe = Recipe("bookworm", [f"deb [trusted=yes] {made.url} bookworm main"], ["tiny"], ["linux-a"])
        bootstraps.one()
    for release in bootstraps.cache.glob("lists-*/*Release"):
        release.write_text(f"Valid-Until: Thu, 27 Nov 2025 08:00:00 UTC\n{release.read_text()}")
    lists = bootstraps.one()
    assert lists is not None
    assert bootstraps.has_tiny()
    said = [note for note in bootstraps.recorder.notes if "lists" in note or "expired" in note]
    assert f"the mirror cannot be reached: using the package lists of {lists.day} from the cache" in said
    assert said[-1].startswith("they expired on 2025-11-27")


def test_a_mirror_that_answers_nonsense_is_an_error_whatever_the_cache_has(
    bootstraps: Bootstraps, server: Mirror
) -> None:
    bootstraps.one()
    server.files["/dists/bookworm/Release"] = b"Suite: bookworm\nSHA256:\n 00 1 main/binary-amd64/Packages\n"
    with pytest.raises(CommandFailed):
        bootstraps.one()
    assert not [note for note in bootstraps.recorder.notes if "cannot be reached" in note]


def test_what_the_cache_lacks_is_named(bootstraps: Bootstraps) -> None:
    with pytest.raises(HostRequirement, match="no package lists"):
        bootstraps.one(offline=True)
    bootstraps.one()
    for archive in bootstraps.cache.glob("*.deb"):
        archive.unlink()
    with pytest.raises(CommandFailed, match="not all packages: tiny_") as caught:
        bootstraps.one(offline=True)
    assert "with a network" in caught.value.hint
