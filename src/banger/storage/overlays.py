"""Copy-on-write root disks: a qcow2 over an image's raw root, O(1) in the image's size."""

import secrets
from pathlib import Path

from banger.model.errors import Invalid
from banger.model.progress import Progress
from banger.storage.copies import Room, copy_disk
from banger.system.files import allocated_bytes
from banger.system.process import find_program, run

__all__ = ["allocated_bytes", "create_root_copy", "create_root_overlay"]

# Subclusters of 2 KiB, below the guest's block of 4: no write copies anything from the image. Reference counts
# that lag behind cost nothing here, as a qcow2 that was not closed is repaired when it is opened.
_OPTIONS = "cluster_size=64k,extended_l2=on,lazy_refcounts=on"


async def create_root_overlay(base: Path, overlay: Path, size: int | None = None) -> None:
    """Create `overlay` over the raw file `base`; size in bytes, at least the base's; None means the base's.

    The overlay appears whole or not at all. Formats are always explicit: nothing a guest wrote is probed.
    """
    base_bytes = base.stat().st_size
    if size is not None and size < base_bytes:
        raise Invalid(
            f"a root disk of {size} bytes is smaller than its image",
            hint=f"use at least {base_bytes} bytes",
        )
    partial = overlay.with_name(f".{overlay.name}.{secrets.token_hex(4)}")
    argv = [find_program("qemu-img", package="qemu-utils"), "create", "-q", "-f", "qcow2", "-o", _OPTIONS]
    argv += ["-F", "raw", "-b", str(base.absolute()), str(partial.absolute()), str(size or base_bytes)]
    try:
        await run(argv, timeout=30)
        partial.rename(overlay)
    finally:
        partial.unlink(missing_ok=True)


async def create_root_copy(base: Path, copy: Path, progress: Progress, room: Room) -> None:
    """Make `copy`, a raw disk with the content of the raw file `base`; O(1) where the filesystem shares blocks.

    A full copy takes time and room in the image's size, so it is said and its progress told; `room` is asked
    for that room first, and may refuse. The copy appears whole or not at all; cancelling ends it.
    """
    partial = copy.with_name(f".{copy.name}.{secrets.token_hex(4)}")
    try:
        await copy_disk(base, partial, progress, room, what="the root disk")
        partial.chmod(0o600)
        partial.rename(copy)
    finally:
        partial.unlink(missing_ok=True)
