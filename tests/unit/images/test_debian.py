"""The installer's argv and how its failures read; nothing is started."""

import asyncio
import os
from pathlib import Path

import pytest

from banger.images import debian
from banger.images.boot import BOOT_ARGS
from banger.images.debian import DebianRequest, bootstrap
from banger.images.mmdebstrap import Recipe, archive_name, command, drop_documents, mirror_unreachable
from banger.images.rootfs import Seed
from banger.model.errors import HostRequirement, Invalid
from banger.paths import Paths
from tests.unit.images.recorder import Recorder


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return Paths(tmp_path / "state", tmp_path / "run", tmp_path / "cache")


def test_the_hook_survives_a_path_with_spaces_and_quotes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("banger.images.mmdebstrap.find_program", lambda name, package: f"/usr/bin/{name}")
    recipe = Recipe("bookworm", ["deb http://mirror.example/ bookworm main"], ["bash", "dbus"], ["linux-a"])
    argv = command(recipe, Path("/r"), Path("/it's here/k"), Path("/a b/hook.sh"))
    hook = next(word for word in argv if word.startswith("--customize-hook="))
    assert hook == """--customize-hook=sh '/a b/hook.sh' "$1" '/it'"'"'s here/k' linux-a"""
    assert argv[-3:] == ["bookworm", "/r", "deb http://mirror.example/ bookworm main"]
    assert "--include=bash,dbus" in argv


def test_offline_the_lists_in_the_root_must_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("banger.images.mmdebstrap.find_program", lambda name, package: f"/usr/bin/{name}")
    recipe = Recipe("bookworm", [], ["bash"], ["linux-a"])
    skipped = {}
    for offline in (False, True):
        argv = command(recipe, Path("/r"), Path("/k"), Path("/hook.sh"), offline=offline)
        (skip,) = [word for word in argv if word.startswith("--skip=")]
        skipped[offline] = set(skip.removeprefix("--skip=").split(","))
    assert skipped[True] - skipped[False] == {"update"}
    assert "check/empty" in skipped[False]


RELEASE = "E: Failed to fetch http://m/dists/bookworm/InRelease  "
PACKAGE = "E: Failed to fetch http://m/pool/a_1_all.deb  "


@pytest.mark.parametrize(
    ("lines", "unreachable"),
    [
        ([RELEASE + "Temporary failure resolving 'm'", "E: Some index files failed to download."], True),
        ([RELEASE + "Could not connect to m:80 (127.0.0.1). - connect (111: Connection refused)"], True),
        ([RELEASE + "Cannot initiate the connection to m:80. - connect (101: Network is unreachable)"], True),
        ([RELEASE + "503  Service Unavailable [IP: 127.0.0.1 3128]"], True),
        ([RELEASE + "404  Not Found [IP: 127.0.0.1 80]"], False),
        ([RELEASE + "The following signatures were invalid: BADSIG 0123"], False),
        ([RELEASE + "Temporary failure resolving 'm'", RELEASE + "403  Forbidden"], False),
        (["E: The repository 'http://m bookworm InRelease' is not signed."], False),
        ([PACKAGE + "Temporary failure resolving 'm'"], False),
        ([], False),
    ],
)
def test_only_a_mirror_that_nobody_answers_at_is_passed_over(lines: list[str], unreachable: bool) -> None:
    assert mirror_unreachable(lines) is unreachable


def test_an_archive_is_named_as_apt_names_it() -> None:
    package = {"name": "git", "version": "1:2.39.5-0+deb12u2", "arch": "amd64"}
    assert archive_name(package) == "git_1%3a2.39.5-0+deb12u2_amd64.deb"


def test_documents_go_and_licences_stay(tmp_path: Path) -> None:
    share = tmp_path / "usr/share"
    for name in ("doc/a/copyright", "doc/a/README", "man/man1/a.1", "locale/de/a.mo", "locale/locale.alias"):
        (share / name).parent.mkdir(parents=True, exist_ok=True)
        (share / name).write_text(name)
    (share / "doc/b").symlink_to("a")
    drop_documents(tmp_path)
    left = sorted(str(path.relative_to(share)) for path in share.rglob("*") if not path.is_dir() or path.is_symlink())
    assert left == ["doc/a/copyright", "doc/b", "locale/locale.alias"]


def test_the_boot_arguments_name_the_roots_type_and_the_console() -> None:
    assert {"rootfstype=ext4", "root=/dev/vda", "rw", "console=ttyS0"} <= set(BOOT_ARGS.split())


def test_anybody_but_root_is_told_what_to_do(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(HostRequirement) as caught:
        asyncio.run(bootstrap(paths, DebianRequest(name="d", seed=Seed()), Recorder()))
    assert "root" in caught.value.hint
    assert not paths.images.exists()


@pytest.mark.parametrize("package", ["-o=x", "a,b", "a b", "/tmp/evil.deb", "?essential"])
def test_a_package_name_cannot_smuggle_apt_syntax(paths: Paths, package: str) -> None:
    request = DebianRequest(name="d", seed=Seed(), extra_packages=(package,))
    with pytest.raises(Invalid, match="package name"):
        asyncio.run(bootstrap(paths, request, Recorder()))


def test_a_full_disk_is_told_before_anything_is_made(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(debian, "_FREE_BYTES", 1 << 62)
    monkeypatch.setattr(debian, "require_root", lambda: None)
    monkeypatch.setattr(debian, "find_program", lambda name, package: name)
    with pytest.raises(HostRequirement, match="MiB free"):
        asyncio.run(bootstrap(paths, DebianRequest(name="d", seed=Seed()), Recorder()))
    assert list(paths.images.iterdir()) == []
