"""Root disks of the kernel's own device mapper, tried in a guest whose kernel has one; not a test of its own.

Run as root with a directory that is to be made, to work in; exit status 77 where the kernel has none after all.
"""

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from banger.model.errors import BangerError, Conflict
from banger.storage import mapped
from banger.storage.mapped import attach_root, changes_bytes, create_changes, detach_root, device_names
from banger.system.devmapper import Target, create_device, device_exists, usable

MIB = 1 << 20
VM = "0123456789ab"


def backing_files() -> set[str]:
    return {path.read_text().strip() for path in Path("/sys/block").glob("loop*/loop/backing_file")}


def nothing_is_left() -> None:
    assert not any(device_exists(name) for name in device_names(VM))
    only_backed_by(set())


def only_backed_by(files: set[str]) -> None:
    """udev looks into every new loop device, and has it open for a moment."""
    deadline = time.monotonic() + 10
    while backing_files() != files and time.monotonic() < deadline:
        time.sleep(0.01)
    assert backing_files() == files


def read(device: Path, at: int, length: int) -> bytes:
    with device.open("rb", buffering=0) as file:
        file.seek(at)
        return file.read(length)


def write(device: Path, at: int, data: bytes) -> None:
    with device.open("r+b", buffering=0) as file:
        file.seek(at)
        file.write(data)
        os.fsync(file.fileno())


async def keeps_what_was_written(base: Path, changes: Path) -> None:
    original = base.read_bytes()
    assert await create_changes(VM, base, changes, 2 * len(original)) == ""
    nothing_is_left()
    device = await attach_root(VM, base, changes, 2 * len(original))
    assert read(device, 0, 3 * len(original)) == original + bytes(len(original))
    write(device, 40960, b"x" * 4096)
    write(device, len(original) + 512, b"y" * 512)
    await detach_root(VM)
    nothing_is_left()
    device = await attach_root(VM, base, changes, 4 * len(original))
    assert read(device, 40960, 8192) == b"x" * 4096 + original[45056:49152]
    assert read(device, len(original), 1536) == bytes(512) + b"y" * 512 + bytes(512)
    assert len(read(device, 0, 5 * len(original))) == 4 * len(original)
    assert base.read_bytes() == original


async def goes_with_its_user(base: Path, changes: Path) -> None:
    size = 2 * base.stat().st_size
    device = await attach_root(VM, base, changes, size)
    mapped._GONE_S = 0.3
    with device.open("rb"):
        await detach_root(VM)
        assert backing_files() == {str(base), str(changes)}
        try:
            await attach_root(VM, base, changes, size)
            raise AssertionError("one file of changes is in two disks")
        except Conflict:
            pass
    mapped._GONE_S = 10.0
    await mapped._gone(VM)
    nothing_is_left()


async def holds_a_disk_that_was_changed_everywhere(base: Path, changes: Path) -> None:
    size = base.stat().st_size
    assert await create_changes(VM, base, changes, size) == ""
    device = await attach_root(VM, base, changes, size)
    write(device, 0, b"z" * size)
    device = await attach_root(VM, base, changes, size)
    assert read(device, 0, size) == b"z" * size
    await detach_root(VM)
    nothing_is_left()
    assert changes.stat().st_size == changes_bytes(size)


async def survives_a_full_disk(base: Path, small: Path) -> None:
    """`small` is a filesystem of 12 MiB."""
    original, changes, size = base.read_bytes(), small / "root.cow", 16 * MIB
    assert await create_changes(VM, base, changes, size) == ""
    device, done = await attach_root(VM, base, changes, size), 0
    try:
        for number in range(16):
            write(device, number * MIB, bytes([number + 1]) * MIB)
            done += 1
        raise AssertionError("the disk did not fill")
    except OSError:
        pass
    assert done > 8
    notes: list[str] = []
    device = await attach_root(VM, base, changes, size, notes.append)
    assert notes == [mapped.MENDED]
    found = read(device, 0, size)
    assert len(found) == size
    for number in range(done):
        assert found[number * MIB :].startswith(bytes([number + 1]) * MIB)
    # of what failed, each block is the new one or the old one
    whole = original + bytes(size - len(original))
    for at in range(done * MIB, size, 4096):
        assert found[at : at + 4096] in (bytes([at // MIB + 1]) * 4096, whole[at : at + 4096])
    await detach_root(VM)
    nothing_is_left()


async def a_crash_between_steps_is_cleaned_up(base: Path, changes: Path) -> None:
    pid = os.fork()
    if pid == 0:
        try:
            real = create_device

            def dies(name: str, targets: Sequence[Target], *, read_only: bool = False) -> Path:
                if name == device_names(VM)[0]:
                    os.kill(os.getpid(), 9)
                return real(name, targets, read_only=read_only)

            mapped.__dict__["create_device"] = dies
            mapped._attach(VM, base, changes, 2 * base.stat().st_size)
        finally:
            os._exit(1)
    assert os.waitpid(pid, 0)[1] == 9
    only_backed_by({str(base)})
    await detach_root(VM)
    nothing_is_left()


async def refusals_leave_nothing(base: Path) -> None:
    for kind, words in (("nosuch", ""), ("snapshot", "1:1 2:2 P 8")):
        try:
            create_device(device_names(VM)[0], [Target(0, 2048, kind, words)])
            raise AssertionError(kind)
        except BangerError:
            nothing_is_left()


async def main(place: Path) -> None:
    base = place / "base.ext4"
    base.write_bytes(os.urandom(8 * MIB))
    base.chmod(0o444)
    await keeps_what_was_written(base, place / "root.cow")
    await goes_with_its_user(base, place / "root.cow")
    await holds_a_disk_that_was_changed_everywhere(base, place / "whole.cow")
    await a_crash_between_steps_is_cleaned_up(base, place / "root.cow")
    await refusals_leave_nothing(base)
    await survives_a_full_disk(base, place / "small")


if __name__ == "__main__":
    if not usable():
        sys.exit(77)
    where = Path(sys.argv[1])
    (where / "small").mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m", "none", str(where / "small")], check=True)
    asyncio.run(main(where))
    print("all of it")
