"""Work disks: raw ext4 filesystems that guests mount at /root, cloned from a seed."""

import os
from pathlib import Path

from banger.model.errors import HostRequirement, Invalid
from banger.model.progress import Progress
from banger.model.sizes import MIB, show_size
from banger.storage.copies import Room, copy_disk, copy_whole
from banger.storage.partial import partial_of
from banger.system.ext4 import grow_ext4, renew_uuid
from banger.system.files import allocated_bytes, in_thread, sync_path

# A seed with so few blocks is copied: shared, they would take more room, as each is copied when it is written, and
# accounting would have to ask the kernel about them
_COPIED_MAX = 4 * MIB


async def create_work_disk(seed: Path, target: Path, size: int, progress: Progress, room: Room) -> None:
    """Make `target`, a work disk of `size` bytes with the seed's content and a UUID of its own.

    It appears whole and durable, or not at all. Raises `Invalid` when the seed is larger, `CommandFailed`.
    """
    if size < (least := seed.stat().st_size):
        raise Invalid(
            f"a work disk of {show_size(size)} does not hold what the image puts into /root",
            hint=f"choose --work-disk {show_size(least).replace(' ', '').replace('iB', '')} or more",
        )
    partial = partial_of(target)
    try:
        few = allocated_bytes(seed) <= _COPIED_MAX
        await (copy_whole if few else copy_disk)(seed, partial, progress, room)
        partial.chmod(0o600)
        await grow_ext4(partial, size)
        await renew_uuid(partial)
        await in_thread(sync_path, partial)
        partial.rename(target)
    finally:
        partial.unlink(missing_ok=True)
    await in_thread(sync_path, target.parent)


def enlarge_work_disk(disk: Path, size: int) -> None:
    """Give the file more room, durably; its guest grows the filesystem into it. It never becomes smaller."""
    if size > disk_size(disk):
        os.truncate(disk, size)
        sync_path(disk)


def disk_size(disk: Path) -> int:
    """In bytes. Raises `HostRequirement` when the disk is gone."""
    try:
        return disk.stat().st_size
    except FileNotFoundError as error:
        raise HostRequirement(
            f"the work disk {disk} is missing", hint="put it back, or delete the VM; nothing was changed"
        ) from error
