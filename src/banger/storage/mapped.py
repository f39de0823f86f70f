"""Root disks that the kernel's device mapper puts together: an image, and a file with what a guest has changed of it.

The file is sparse, as large as it can ever need to be: a snapshot that is full is lost (Linux,
admin-guide/device-mapper/snapshot.rst). Its layout is the kernel's (drivers/md/dm-snap-persistent.c): a chunk that
holds the header, then areas of a chunk with numbers and as many chunks of data as it has numbers.
"""

import asyncio
import os
import struct
from collections.abc import Callable
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path

from banger.model.errors import BangerError, Conflict, Invalid
from banger.storage.partial import partial_of
from banger.system.devmapper import SECTOR, Target, create_device, device_exists, number, remove_device, usable
from banger.system.files import in_thread
from banger.system.loop import loop_device

# The guest's block: no write of it copies anything from the image
CHUNK = 4096
_AREA = CHUNK // 16
_HEADER = struct.Struct("<4sIII")  # magic, valid, version, sectors of a chunk
_MAGIC = b"SnAp"
_GONE_S = 5.0
MENDED = (
    "the host could not write something that the guest had changed, and the kernel gave the root disk up; "
    "it has again all that was written before"
)


def device_names(vm_id: str) -> tuple[str, str]:
    """What the device mapper calls a VM's root disk, and an image that was made longer for it."""
    return f"banger-{vm_id}", f"banger-{vm_id}-base"


def changes_bytes(size: int) -> int:
    """How large the file of changes must be, for a disk of so many bytes of which everything was changed."""
    chunks = -(-size // CHUNK)
    areas = -(-chunks // _AREA)
    # when an area is full the next one's numbers are cleared already
    return (1 + areas * (1 + _AREA) + 1) * CHUNK


async def create_changes(vm_id: str, base: Path, changes: Path, size: int) -> str:
    """Make `changes`, for a root disk of so many bytes over the raw file `base`; why not, where that cannot be.

    That it can is proved: the disk is put together once.
    """
    if os.geteuid() != 0:
        return "only root can use device-mapper"
    if not usable():
        return "device-mapper cannot be used here"
    partial = partial_of(changes)
    try:
        partial.touch(mode=0o600, exist_ok=False)
        try:
            await attach_root(vm_id, base, partial, size)
        finally:
            await detach_root(vm_id)
        partial.rename(changes)
    except (OSError, BangerError) as error:
        return str(error.strerror if isinstance(error, OSError) else error.message)
    finally:
        partial.unlink(missing_ok=True)
    return ""


async def attach_root(
    vm_id: str, base: Path, changes: Path, size: int, note: Callable[[str], None] = lambda _: None
) -> Path:
    """Put the VM's root disk together and return its device, for an engine that is about to start.

    Whatever is left of one is taken away first. `changes` that were made for a smaller disk do for a larger one.
    Raises `Conflict` when somebody has the disk open, `Invalid` when `changes` are none, `HostRequirement`, `OSError`.
    """
    await detach_root(vm_id)
    await _gone(vm_id)
    async with AsyncExitStack() as on_failure:
        on_failure.push_async_callback(detach_root, vm_id)
        if await in_thread(_mend, changes):
            note(MENDED)
        device = await in_thread(_attach, vm_id, base, changes, size)
        on_failure.pop_all()
    return device


async def detach_root(vm_id: str) -> None:
    """Take the VM's root disk apart, at once or when nobody has it open any more; its changes stay.

    Once an engine has it open, so that nothing is left when that ends, whatever becomes of us; and when one has ended.
    Without such a disk, there is nothing to do.
    """
    if os.geteuid() == 0 and usable():
        for name in device_names(vm_id):
            await in_thread(remove_device, name)


async def _gone(vm_id: str) -> None:
    """An engine's last threads, and with them its descriptors, may outlive its end by a moment."""
    try:
        async with asyncio.timeout(_GONE_S):
            for name in device_names(vm_id):
                while await in_thread(device_exists, name):  # noqa: ASYNC110 - no event tells
                    await asyncio.sleep(0.01)
    except TimeoutError as error:
        raise Conflict(
            f"the device {name} is in use", hint="`lsblk` shows by what; end that, then start the VM again"
        ) from error


def _attach(vm_id: str, base: Path, changes: Path, size: int) -> Path:
    name, longer = device_names(vm_id)
    if changes.stat().st_size < changes_bytes(size):
        os.truncate(changes, changes_bytes(size))
    sectors, held = size // SECTOR, base.stat().st_size // SECTOR
    with ExitStack() as stack:
        origin = stack.enter_context(loop_device(base, read_only=True))
        if held < sectors:
            targets = [Target(0, held, "linear", f"{number(origin)} 0"), Target(held, sectors - held, "zero")]
            origin = create_device(longer, targets, read_only=True).stat()
        written = stack.enter_context(loop_device(changes))
        words = f"{number(origin)} {number(written)} P {CHUNK // SECTOR}"
        return create_device(name, [Target(0, sectors, "snapshot", words)])


def _mend(changes: Path) -> bool:
    """Whether the kernel had given these changes up, as it does for good when one of them cannot be written.

    What was written before is all there, and the guest was told of each write that failed, so they are taken up again.
    """
    with changes.open("r+b", buffering=0) as file:
        head = file.read(_HEADER.size)
        if not head.strip(b"\0"):
            return False  # a fresh one
        magic, valid, version, chunk = _HEADER.unpack(head.ljust(_HEADER.size, b"\0"))
        if (magic, version, chunk) != (_MAGIC, 1, CHUNK // SECTOR):
            raise Invalid(f"{changes} does not hold a disk's changes", hint="restore it, or delete the VM")
        if valid:
            return False
        file.seek(0)
        file.write(_HEADER.pack(magic, 1, version, chunk))
        os.fsync(file.fileno())
        return True
