"""The agent grows a real ext4 while it is mounted and written to."""

import asyncio
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from banger.model.errors import BangerError, GuestUnreachable, Unsupported
from banger.model.guest import Grown
from banger.system.ext4 import GROWABLE, make_ext4
from tests.unit.guest.hybrid import guest

MIB = 1 << 20
SYS_RESOURCE = 1 << 24


def _capabilities() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("CapEff:")).split()[1], 16)


needs_resource = pytest.mark.skipif(
    not _capabilities() & SYS_RESOURCE, reason="growing a filesystem needs CAP_SYS_RESOURCE"
)
pytestmark = [pytest.mark.host, pytest.mark.skipif(os.geteuid() != 0, reason="mounts are root's")]


def run(*words: str) -> str:
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip()


class Place(NamedTuple):
    """A mounted filesystem, the file it lies in, and the loop device between them."""

    folder: Path
    point: Path
    file: Path
    device: str

    def enlarge(self, size: int) -> None:
        os.truncate(self.file, size)
        run("losetup", "-c", self.device)

    def ask(self, device_bytes: int = 0) -> Grown:
        async def body() -> Grown:
            async with asyncio.timeout(60), guest(self.folder) as machine:
                return await machine.grow(str(self.point), device_bytes=device_bytes)

        return asyncio.run(body())

    def fails(self, kind: type[BangerError], device_bytes: int = 0) -> str:
        with pytest.raises(kind) as caught:
            self.ask(device_bytes)
        return caught.value.message


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    file, point = tmp_path / "work.ext4", tmp_path / "root"
    point.mkdir()
    asyncio.run(make_ext4(file, 64 * MIB, label="work", options=GROWABLE))
    device = run("losetup", "--find", "--show", str(file))
    try:
        run("mount", "-o", "discard,noinit_itable", device, str(point))
        try:
            yield Place(tmp_path, point, file, device)
        finally:
            run("umount", str(point))
    finally:
        run("losetup", "--detach", device)


@needs_resource
def test_a_mounted_filesystem_grows_with_its_disk_and_stays_sound(place: Place) -> None:
    content = os.urandom(MIB)
    (place.point / "kept").write_bytes(content)
    assert place.ask() == Grown(bytes=64 * MIB, grown=False)
    before = os.statvfs(place.point).f_blocks
    with (place.point / "log").open("wb") as log:
        for size in (96 * MIB, 8192 * MIB):
            place.enlarge(size)
            assert place.ask(device_bytes=size) == Grown(bytes=size, grown=True)
            log.write(content)
            os.fsync(log.fileno())
    assert os.statvfs(place.point).f_blocks > 100 * before
    assert place.ask() == Grown(bytes=8192 * MIB, grown=False)
    assert (place.point / "kept").read_bytes() == content
    assert place.file.stat().st_blocks * 512 < 64 * MIB, "growing wrote what could have stayed a hole"
    run("umount", str(place.point))
    run("e2fsck", "-f", "-n", place.device)
    run("mount", place.device, str(place.point))
    assert (place.point / "log").read_bytes() == content * 2


@needs_resource
def test_a_disk_of_which_the_kernel_has_not_been_told_is_waited_for(place: Place) -> None:
    os.truncate(place.file, 96 * MIB)

    async def body() -> Grown:
        async with asyncio.timeout(60), guest(place.folder) as machine:
            asking = asyncio.create_task(machine.grow(str(place.point), device_bytes=96 * MIB))
            await asyncio.wait({asking}, timeout=0.3)
            assert not asking.done()
            await asyncio.to_thread(run, "losetup", "-c", place.device)
            return await asking

    assert asyncio.run(body()) == Grown(bytes=96 * MIB, grown=True)


def test_what_cannot_be_grown_is_said(place: Place) -> None:
    assert f"has {64 * MIB} bytes for this kernel" in place.fails(Unsupported, device_bytes=65 * MIB)
    assert place.ask() == Grown(bytes=64 * MIB, grown=False)


@needs_resource
def test_a_read_only_mount_is_not_grown(place: Place) -> None:
    run("mount", "-o", "remount,ro", str(place.point))
    place.enlarge(96 * MIB)
    assert "Read-only file system" in place.fails(GuestUnreachable)


def test_another_filesystem_is_not_grown(place: Place) -> None:
    run("mount", "-t", "tmpfs", "none", str(place.point))
    try:
        assert "is no ext4 on a device" in place.fails(Unsupported)
    finally:
        run("umount", str(place.point))
