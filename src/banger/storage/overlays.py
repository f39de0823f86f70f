"""Copy-on-write root disks, O(1) in the image's size where that can be: a qcow2 over it, a clone, or a dm-snapshot."""

import os
from pathlib import Path

from banger.model.errors import Invalid
from banger.model.progress import Progress
from banger.model.sizes import MIB, show_size
from banger.storage.copies import Room, copy_whole
from banger.storage.mapped import create_changes
from banger.storage.partial import partial_of
from banger.system.files import clone_file, in_thread, sync_path
from banger.system.process import find_program, run
from banger.system.qcow2 import read_qcow2

# Subclusters of 2 KiB, below the guest's block of 4: no write copies anything from the image. Reference counts
# that lag behind cost nothing here, as a qcow2 that was not closed is repaired when it is opened.
_OPTIONS = "cluster_size=64k,extended_l2=on,lazy_refcounts=on"
_REBASE_S = 600.0
NO_SHARING = "this filesystem cannot share blocks (reflink)"


async def create_root_overlay(base: Path, overlay: Path, size: int | None = None) -> None:
    """Create `overlay` over the raw file `base`; size in bytes, at least the base's; None means the base's.

    The overlay appears whole or not at all. Formats are always explicit: nothing a guest wrote is probed.
    """
    size = _checked(base, size)
    partial = partial_of(overlay)
    argv = [find_program("qemu-img", package="qemu-utils"), "create", "-q", "-f", "qcow2", "-o", _OPTIONS]
    argv += ["-F", "raw", "-b", str(base.absolute()), str(partial.absolute()), str(size)]
    try:
        await run(argv, timeout=30)
        partial.rename(overlay)
    finally:
        partial.unlink(missing_ok=True)


async def change_base(overlay: Path, former: Path, base: Path) -> None:
    """Let an overlay that nothing has open lie over `base` instead of `former`, which has or had the same content.

    Only a name in its header changes, within one block of its filesystem: it is the old one or the new one, whatever
    happens. Neither file is opened. Raises `Invalid` for a header that is none of ours, `CommandFailed`, `Timeout`.
    """
    head = read_qcow2(overlay)
    if head.foreign or (head.backing, head.backing_format) != (str(former), "raw"):
        raise Invalid(f"{overlay.name} does not lie over {former}; it was not changed")
    argv = [find_program("qemu-img", package="qemu-utils"), "rebase", "-q", "-u", "-f", "qcow2", "-F", "raw"]
    # one that was not closed has its reference counts put right, which can take a while
    await run([*argv, "-b", str(base.absolute()), str(overlay.absolute())], timeout=_REBASE_S)
    await in_thread(sync_path, overlay)


async def create_root_raw(
    vm_id: str, base: Path, copy: Path, changes: Path, size: int | None, progress: Progress, room: Room
) -> None:
    """Make a root disk over the raw file `base` for an engine that reads no overlays; size as for an overlay.

    It is `copy`, a clone that shares the base's blocks; where the filesystem cannot do that `changes`, of which
    `mapped.attach_root` makes a disk; where device-mapper cannot do that either `copy`, with all the base's content.
    Which can be done is tried. The full copy takes time and room in the image's size, so it is said and its progress
    told; `room` is asked for that room first, and may refuse. The file appears whole or not at all; cancelling ends it.
    """
    size = _checked(base, size)
    partial = partial_of(copy)
    try:
        if not await in_thread(clone_file, base, partial):
            if not (why_not := await create_changes(vm_id, base, changes, size)):
                progress.note(f"{NO_SHARING}: the root disk is a dm-snapshot of its image")
                return
            progress.note(f"{NO_SHARING}, and {why_not}: the root disk is a full copy")
            await copy_whole(base, partial, progress, room)
        os.truncate(partial, size)
        partial.chmod(0o600)
        partial.rename(copy)
    finally:
        partial.unlink(missing_ok=True)


def _checked(base: Path, size: int | None) -> int:
    """The size of a disk over `base`. Raises `Invalid` when it would be smaller."""
    least = base.stat().st_size
    if size is not None and size < least:
        raise Invalid(
            f"a root disk of {show_size(size)} is smaller than its image, whose filesystem fills {show_size(least)}",
            hint=f"use --disk {-(-least // MIB)}M or more, or leave it out",
        )
    return size or least
