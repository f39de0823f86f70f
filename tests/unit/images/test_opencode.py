"""opencode's package: from where, verified, fetched once, and nothing of it in the root but one program."""

import asyncio
import errno
import os
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from banger.images import opencode
from banger.images.npm import find_registry, tarball_url
from banger.images.opencode import BUILDS, Build, Package, fetch, install, locate
from banger.model.errors import BangerError, HostRequirement, Invalid
from banger.system.download import DownloadFailed
from banger.system.process import run
from tests.support.firecracker import member, program
from tests.support.mirror import Mirror, mirror
from tests.support.npm import PATH, PROGRAM, Parts, build_of, package, parts
from tests.unit.images.recorder import Recorder

CONTENT = package()
BUILD = build_of(CONTENT)


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[Mirror]:
    monkeypatch.setenv("no_proxy", "*")
    with mirror() as made:
        made.files[PATH] = CONTENT
        yield made


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir()) if directory.exists() else []


def get(cache: Path, url: str | None, build: Build = BUILD) -> tuple[Package, Recorder]:
    recorder = Recorder()

    async def scenario() -> Package:
        found = await locate(build, cache, url)
        await fetch(found, recorder)
        return found

    return asyncio.run(scenario()), recorder


# where from


@pytest.fixture
def npm_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only `npm` there is; it does not exist until a test writes it."""
    program = tmp_path / "bin/npm"
    program.parent.mkdir()

    async def only_ours(argv: list[str], **more: object) -> object:
        if not program.exists():
            raise HostRequirement("cannot start npm: not found")
        return await run([str(program), *argv[1:]], **more)  # type: ignore[arg-type]

    monkeypatch.setattr("banger.images.npm.run", only_ours)
    return program


def says(program: Path, text: str) -> None:
    program.write_text(f"#!/bin/sh\n{text}\n")
    program.chmod(0o755)


def find(home: Path, setting: str | None = None, **environ: str) -> str:
    return asyncio.run(find_registry(setting, home, environ))


def test_the_registry_is_the_first_that_somebody_names(tmp_path: Path, npm_says: Path) -> None:
    (tmp_path / ".npmrc").write_text("fund=false\nregistry = http://npmrc.example/a/\n")
    assert find(tmp_path) == "http://npmrc.example/a"
    says(npm_says, 'test "$*" = "config get registry" && echo http://npm.example/')
    assert find(tmp_path) == "http://npm.example"
    assert find(tmp_path, NPM_Config_Registry="http://variable.example/") == "http://variable.example"
    assert find(tmp_path, "http://set.example", npm_config_registry="http://v.example") == "http://set.example"


@pytest.mark.parametrize("text", ["exit 1", "echo undefined", "kill -9 $$"])
def test_an_npm_that_knows_nothing_is_passed_over(tmp_path: Path, npm_says: Path, text: str) -> None:
    says(npm_says, text)
    (tmp_path / ".npmrc").write_text("registry=http://npmrc.example\n")
    assert find(tmp_path) == "http://npmrc.example"


@pytest.mark.parametrize("npmrc", [None, "", "@scope:registry=http://x.example\n", "registry=${HIDDEN}\n"])
def test_without_a_registry_the_ways_out_are_told(tmp_path: Path, npm_says: Path, npmrc: str | None) -> None:
    if npmrc is not None:
        (tmp_path / ".npmrc").write_text(npmrc)
    with pytest.raises(HostRequirement) as caught:
        find(tmp_path)
    for way in ("apt-get install npm", "npm_registry", "--no-opencode"):
        assert way in caught.value.hint


@pytest.mark.parametrize(
    "url", ["ftp://x.example", "http://user:secret@x.example", "nonsense", "http://[", "http://a b"]
)
def test_a_registry_that_is_no_plain_url_is_refused_without_repeating_it(tmp_path: Path, url: str) -> None:
    with pytest.raises(Invalid, match="npm_registry") as caught:
        find(tmp_path, url)
    assert url not in caught.value.message + caught.value.hint


def test_the_pinned_builds_are_digests_of_packages_by_npms_convention() -> None:
    for build in BUILDS.values():
        assert build.integrity.startswith("sha512-")
        assert build.file_name.startswith(f"{build.package}-{build.version}-")
        assert build.file_name.endswith(".tgz")
        assert tarball_url("http://r", build.package, build.version).startswith(f"http://r/{build.package}/-/")


# fetched once


def test_a_second_bootstrap_asks_nobody(tmp_path: Path, registry: Mirror, npm_says: Path) -> None:
    cache = tmp_path / "cache"
    first, _ = get(cache, registry.url)
    assert first.file.read_bytes() == CONTENT
    second, recorder = get(cache, None)  # no setting, and no npm
    assert (second.file, second.url) == (first.file, None)
    assert len(registry.asked) == 1
    assert recorder.notes == ["opencode 9.9.9 is in the cache"]


def test_a_damaged_file_in_the_cache_is_fetched_again(tmp_path: Path, registry: Mirror) -> None:
    first, _ = get(tmp_path, registry.url)
    first.file.write_bytes(b"x" + CONTENT[1:])
    again, _ = get(tmp_path, registry.url)
    assert again.file.read_bytes() == CONTENT
    assert names(tmp_path) == [BUILD.file_name]


@pytest.mark.parametrize("at", [0, len(CONTENT) // 2, len(CONTENT) - 1])
def test_one_flipped_bit_is_refused_and_nothing_stays(tmp_path: Path, registry: Mirror, at: int) -> None:
    wrong = bytearray(CONTENT)
    wrong[at] ^= 1
    registry.files[PATH] = bytes(wrong)
    with pytest.raises(Invalid, match="not the one that is expected") as caught:
        get(tmp_path, registry.url)
    assert "--no-opencode" in caught.value.hint
    assert names(tmp_path) == []


def test_a_package_that_ends_early_goes_on_later(tmp_path: Path, registry: Mirror) -> None:
    registry.cuts = [100, 0]
    with pytest.raises(DownloadFailed, match="100 of"):
        get(tmp_path, registry.url)
    get(tmp_path, registry.url)
    assert registry.asked[-1] == (PATH, "bytes=100-")
    assert names(tmp_path) == [BUILD.file_name]


def test_what_another_server_had_begun_does_not_spoil_it(tmp_path: Path, registry: Mirror) -> None:
    (tmp_path / f"{BUILD.file_name}.partial").write_bytes(b"other bytes")
    _, recorder = get(tmp_path, registry.url)
    assert "fetched again" in recorder.notes[0]
    assert (tmp_path / BUILD.file_name).read_bytes() == CONTENT


def test_a_version_that_is_gone_says_what_to_do(tmp_path: Path, registry: Mirror) -> None:
    registry.files.clear()
    with pytest.raises(DownloadFailed, match="404") as caught:
        get(tmp_path, registry.url)
    assert "--no-opencode" in caught.value.hint
    assert names(tmp_path) == []


def test_a_package_without_end_is_not_followed(
    tmp_path: Path, registry: Mirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opencode, "PACKAGE_MAX", 100)
    with pytest.raises(DownloadFailed, match="at most 100 bytes"):
        get(tmp_path, registry.url)
    assert names(tmp_path) == []


def test_no_server_is_an_error_with_the_way_around_it(tmp_path: Path, registry: Mirror) -> None:
    with pytest.raises(BangerError) as caught:
        get(tmp_path, "http://127.0.0.1:1")
    assert "--no-opencode" in caught.value.hint
    assert names(tmp_path) == []


# into the root


def unpacked(tmp_path: Path, members: Parts) -> Path:
    (tmp_path / "p.tgz").write_bytes(package(members))
    root = tmp_path / "root"
    root.mkdir()
    install(tmp_path / "p.tgz", root)
    return root


def files_below(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if not path.is_dir())


def test_only_the_program_comes_out_and_it_runs(tmp_path: Path) -> None:
    root = unpacked(tmp_path, parts())
    assert files_below(root) == ["usr/local/bin/opencode"]
    path = root / "usr/local/bin/opencode"
    assert (path.stat().st_mode & 0o7777, path.stat().st_uid) == (0o755, os.geteuid())
    assert subprocess.run([path], capture_output=True, check=True).stdout.startswith(b"opencode 9.9.9")


def test_a_licence_in_the_package_comes_along(tmp_path: Path) -> None:
    root = unpacked(tmp_path, [*parts(), member("package/LICENSE", b"MIT")])
    assert (root / "usr/share/doc/opencode/copyright").read_bytes() == b"MIT"


def test_a_root_whose_directories_are_links_does_not_lead_outside(tmp_path: Path) -> None:
    (tmp_path / "p.tgz").write_bytes(CONTENT)
    (tmp_path / "root/usr").mkdir(parents=True)
    (tmp_path / "root/usr/local").symlink_to("/../../outside")
    install(tmp_path / "p.tgz", tmp_path / "root")
    assert names(tmp_path) == ["p.tgz", "root"]
    assert (tmp_path / "root/outside/bin/opencode").is_file()


REST = [part for part in parts() if part[0].name != PROGRAM]
HOSTILE: dict[str, tuple[Parts, str]] = {
    "no program": (REST, "no package/bin/opencode"),
    "a link in its place": ([*REST, member(PROGRAM, b"", type=tarfile.SYMTYPE, linkname="/bin/sh")], "plain file"),
    "a hard link": ([*REST, member(PROGRAM, b"", type=tarfile.LNKTYPE, linkname="package.json")], "plain file"),
    "a directory": ([*REST, member(PROGRAM, b"", type=tarfile.DIRTYPE)], "plain file"),
    "a device": ([*REST, member(PROGRAM, b"", type=tarfile.CHRTYPE)], "plain file"),
    "an empty one": ([*REST, member(PROGRAM, b"")], "0 bytes"),
    "two of them": ([*parts(), member(PROGRAM, program("another"))], "twice"),
    "a licence without end": ([*parts(), member("package/LICENSE", bytes(2_000_000))], "2000000 bytes"),
    "too many members": ([member(f"package/{number}", b"") for number in range(1001)], "1000 members"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_package_that_means_harm_is_refused(tmp_path: Path, case: str) -> None:
    members, said = HOSTILE[case]
    with pytest.raises(Invalid, match=said) as caught:
        unpacked(tmp_path, members)
    assert "--no-opencode" in caught.value.hint
    assert names(tmp_path) == ["p.tgz", "root"]


@pytest.mark.parametrize(
    "name", ["../package/bin/opencode", "/package/bin/opencode", "package/../package/bin/opencode"]
)
def test_another_spelling_of_the_programs_name_is_not_it(tmp_path: Path, name: str) -> None:
    with pytest.raises(Invalid, match="no package/bin/opencode"):
        unpacked(tmp_path, [*REST, member(name, program("x"))])


def test_a_program_that_unpacks_without_end_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opencode, "_UNPACKED_MAX", 1_000_000)
    with pytest.raises(Invalid, match="unpacks to more than 1000000"):
        unpacked(tmp_path, [*REST, member(PROGRAM, bytes(3_000_000))])


def test_a_truncated_package_is_refused(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    for cut in (0, 1, 30, len(CONTENT) // 2):
        (tmp_path / "p.tgz").write_bytes(CONTENT[:cut])
        with pytest.raises(Invalid):
            install(tmp_path / "p.tgz", tmp_path / "root")


def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("banger.system.archive.os.fsync", full)
    with pytest.raises(HostRequirement, match="no room") as caught:
        unpacked(tmp_path, parts())
    assert "free some space" in caught.value.hint
