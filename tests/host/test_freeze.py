"""A guest's filesystems are frozen by the real agent and a real kernel, and thawed whoever ends."""

import asyncio
import errno
import fcntl
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import psutil
import pytest

from banger.guest.files.freeze import FREEZE, THAW
from banger.guest.freeze import frozen
from banger.model.errors import CommandFailed
from banger.system.ext4 import MIB, make_ext4
from tests.host.test_grow import run
from tests.unit.guest.hybrid import guest

pytestmark = [pytest.mark.host, pytest.mark.skipif(os.geteuid() != 0, reason="mounts are root's")]


@pytest.fixture
def point(tmp_path: Path) -> Iterator[Path]:
    """A mounted ext4 of its own; never one of the host's."""
    file, where = tmp_path / "disk.ext4", tmp_path / "point"
    where.mkdir()
    asyncio.run(make_ext4(file, 32 * MIB, label="frozen"))
    run("mount", "-o", "loop", str(file), str(where))
    try:
        yield where
    finally:
        with suppress(OSError):
            _ask(where, THAW)
        run("umount", str(where))


def _ask(point: Path, what: int) -> None:
    fd = os.open(point, os.O_RDONLY)
    try:
        fcntl.ioctl(fd, what, 0)
    finally:
        os.close(fd)


def _is_frozen(point: Path) -> bool:
    try:
        _ask(point, FREEZE)
    except OSError as error:
        if error.errno == errno.EBUSY:
            return True
        raise
    _ask(point, THAW)
    return False


async def _until_thawed(point: Path) -> None:
    async with asyncio.timeout(20):
        while _is_frozen(point):  # noqa: ASYNC110 - no event tells
            await asyncio.sleep(0.05)


@asynccontextmanager
async def _frozen(directory: Path, *paths: Path) -> AsyncIterator[None]:
    async with asyncio.timeout(60), guest(directory) as machine, frozen(machine, [str(path) for path in paths]):
        yield


def test_a_filesystem_is_frozen_within_the_block_and_not_after_it(tmp_path: Path, point: Path) -> None:
    async def body() -> None:
        (point / "file").write_text("content")
        async with _frozen(tmp_path, point, point):  # the same twice is once
            assert _is_frozen(point)
            assert (point / "file").read_text() == "content"
        assert not _is_frozen(point)

    asyncio.run(body())


def test_it_is_thawed_when_the_host_goes_without_a_word(tmp_path: Path, point: Path) -> None:
    async def body() -> None:
        async with asyncio.timeout(60), guest(tmp_path) as machine:
            block = frozen(machine, [str(point)])
            await block.__aenter__()
            assert _is_frozen(point)
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                task.cancel()  # the connection's, in the front before the agent
            await _until_thawed(point)
            await block.__aexit__(None, None, None)

    asyncio.run(body())


def test_it_is_thawed_when_the_agent_is_killed(tmp_path: Path, point: Path) -> None:
    async def body() -> None:
        async with _frozen(tmp_path, point):
            assert _is_frozen(point)
            (agent,) = (process for process in psutil.Process().children() if "--unix" in process.cmdline())
            agent.kill()
            await _until_thawed(point)

    with pytest.raises(AssertionError, match="the agent died"):
        asyncio.run(body())


def test_what_cannot_be_frozen_is_told_and_the_others_are_not_frozen(tmp_path: Path, point: Path) -> None:
    async def body() -> None:
        with pytest.raises(CommandFailed, match="cannot be frozen"):
            async with _frozen(tmp_path, point, Path("/proc")):
                raise AssertionError("it was")
        assert not _is_frozen(point)

    asyncio.run(body())
