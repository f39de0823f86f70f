"""Bootstraps that fail or are cancelled half-way, with a stand-in for mmdebstrap. Needs root, no network."""

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from banger.images import opencode
from banger.images.debian import DebianRequest, bootstrap
from banger.images.rootfs import Seed
from banger.model.errors import BangerError, CommandFailed, HostRequirement, Invalid
from banger.paths import Paths
from banger.system.files import mounts_below
from tests.support.mirror import Mirror, mirror
from tests.support.npm import PATH, build_of, package
from tests.unit.images.recorder import Recorder

pytestmark = [pytest.mark.host, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]

# Arguments as mmdebstrap gets them: ... SUITE ROOT [SOURCES]; the root is the one below a workspace.
FAKE = """#!/bin/sh
for word; do case $word in */.tmp-*/root) root=$word;; esac; done
mkdir -p "$root/proc" "$root/deep/er" "$root/var/lib/dpkg" "$root/var/lib/apt/lists"
touch "$root/var/lib/dpkg/status"
mount -t proc proc "$root/proc"
setsid sleep 98765 &
"""


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return Paths(tmp_path / "state", tmp_path / "run", tmp_path / "cache")


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    program = tmp_path / "bin/mmdebstrap"
    program.parent.mkdir()
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    return program


def _script(program: Path, text: str) -> None:
    program.write_text(FAKE + text)
    program.chmod(0o755)


def _sleepers() -> list[int]:
    return [
        process.pid
        for process in psutil.process_iter(["cmdline"])
        if process.info["cmdline"] == ["sleep", "98765"] and process.status() != psutil.STATUS_ZOMBIE
    ]


def _run(paths: Paths, recorder: Recorder) -> None:
    asyncio.run(bootstrap(paths, DebianRequest(name="debian", seed=Seed()), recorder))


def _assert_nothing_left(paths: Paths) -> None:
    assert list(paths.images.iterdir()) == []
    assert mounts_below(paths.images) == []
    assert _sleepers() == []


def test_a_failure_half_way_leaves_nothing_and_says_why(paths: Paths, fake: Path) -> None:
    _script(fake, "echo 'E: the archive is on fire' >&2\nexit 25\n")
    with pytest.raises(CommandFailed, match="the archive is on fire") as caught:
        _run(paths, Recorder())
    assert caught.value.details["status"] == 25
    assert caught.value.hint
    _assert_nothing_left(paths)


def test_an_unreachable_mirror_is_answered_with_the_option_that_helps(paths: Paths, fake: Path) -> None:
    _script(fake, "echo 'E: Failed to fetch http://mirror.example/x  404  Not Found' >&2\nexit 1\n")
    with pytest.raises(CommandFailed) as caught:
        _run(paths, Recorder())
    assert "--mirror" in caught.value.hint


def test_a_root_without_a_kernel_is_refused_and_removed(paths: Paths, fake: Path) -> None:
    _script(fake, "")
    with pytest.raises(BangerError, match="kernel package"):
        _run(paths, Recorder())
    _assert_nothing_left(paths)


def test_cancelling_ends_every_process_and_leaves_nothing(paths: Paths, fake: Path) -> None:
    _script(fake, "echo 'I: installing remaining packages inside the chroot...' >&2\nsleep 98765\n")
    recorder = Recorder("installing remaining")

    async def scenario() -> None:
        work = asyncio.create_task(bootstrap(paths, DebianRequest(name="debian", seed=Seed()), recorder))
        async with asyncio.timeout(30):
            await recorder.seen.wait()
        assert _sleepers()
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work

    asyncio.run(scenario())
    assert recorder.stages == ["packages"]
    _assert_nothing_left(paths)


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[Mirror]:
    """A registry with a package of opencode, which is the one that is pinned."""
    monkeypatch.setenv("no_proxy", "*")
    content = package()
    monkeypatch.setitem(opencode.BUILDS, "glibc", build_of(content))
    with mirror() as made:
        made.files[PATH] = content
        yield made


def _with_opencode(paths: Paths, recorder: Recorder, registry: str | None) -> None:
    request = DebianRequest(name="debian", seed=Seed(), opencode=True, npm_registry=registry)
    asyncio.run(bootstrap(paths, request, recorder))


# a root that is good enough for opencode and has no kernel, which ends the bootstrap right after it
PACKAGES = 'mkdir -p "$root/usr/local/bin"; umount "$root/proc"\n'


def test_opencode_is_put_in_after_the_packages_and_once_fetched_needs_nobody(
    paths: Paths, fake: Path, registry: Mirror
) -> None:
    _script(fake, PACKAGES)
    for url in (registry.url, "http://127.0.0.1:1"):
        recorder = Recorder()
        with pytest.raises(BangerError, match="kernel package"):
            _with_opencode(paths, recorder, url)
        assert recorder.stages == ["packages", "opencode", "kernel"]
        _assert_nothing_left(paths)
    assert [path for path, _ in registry.asked] == [PATH]
    assert [file.suffix for file in paths.downloads.iterdir()] == [".tgz"]


def test_offline_opencode_comes_from_the_cache_or_not_at_all(paths: Paths, fake: Path, registry: Mirror) -> None:
    _script(fake, PACKAGES)
    request = DebianRequest(name="debian", seed=Seed(), opencode=True, npm_registry=registry.url, offline=True)
    recorder = Recorder()
    with pytest.raises(HostRequirement, match=r"opencode 9\.9\.9 is not in the cache"):
        asyncio.run(bootstrap(paths, request, recorder))
    assert registry.asked == []
    with pytest.raises(BangerError, match="kernel package"):
        _with_opencode(paths, Recorder(), registry.url)
    with pytest.raises(BangerError, match="kernel package"):
        asyncio.run(bootstrap(paths, request, recorder))
    assert recorder.stages == ["packages", "opencode", "kernel"]
    assert len(registry.asked) == 1
    _assert_nothing_left(paths)


def test_a_package_with_a_wrong_digest_ends_the_bootstrap(paths: Paths, fake: Path, registry: Mirror) -> None:
    registry.files[PATH] += b"more"
    _script(fake, PACKAGES)
    with pytest.raises(Invalid, match="not the one that is expected"):
        _with_opencode(paths, Recorder(), registry.url)
    _assert_nothing_left(paths)
    assert list(paths.downloads.iterdir()) == []


def test_without_a_registry_it_fails_before_any_package_is_fetched(
    paths: Paths, fake: Path, registry: Mirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def nobody(setting: str | None) -> str:
        raise HostRequirement("nothing on this host says where npm packages come from", hint="--no-opencode")

    monkeypatch.setattr(opencode, "find_registry", nobody)
    _script(fake, PACKAGES)
    recorder = Recorder()
    with pytest.raises(HostRequirement):
        _with_opencode(paths, recorder, None)
    assert recorder.stages == []
    with pytest.raises(BangerError, match="kernel package"):
        _run(paths, recorder)  # without opencode nobody is asked
    assert recorder.stages == ["packages", "kernel"]
