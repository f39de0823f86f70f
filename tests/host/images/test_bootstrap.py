"""Bootstraps that fail or are cancelled half-way, with a stand-in for mmdebstrap. Needs root, no network."""

import asyncio
import os
from pathlib import Path

import psutil
import pytest

from banger.images.debian import DebianRequest, bootstrap
from banger.images.rootfs import Seed
from banger.model.errors import BangerError, CommandFailed
from banger.paths import Paths
from banger.system.files import mounts_below
from tests.unit.images.recorder import Recorder

pytestmark = [pytest.mark.host, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]

# Arguments as mmdebstrap gets them: ... SUITE ROOT [SOURCES]; the root is the one below a workspace.
FAKE = """#!/bin/sh
for word; do case $word in */.tmp-*/root) root=$word;; esac; done
mkdir -p "$root/proc" "$root/deep/er"
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
    _script(fake, 'mkdir -p "$root/var/cache/apt/archives"\n')
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
