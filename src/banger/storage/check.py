"""Whether a VM's disks are sound. Nothing of theirs is changed: what needs a repair first is repaired in a copy."""

import json
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from banger.model.documents import DiskCheck
from banger.model.errors import CommandFailed, Invalid
from banger.model.progress import Progress
from banger.model.text import harmless
from banger.storage import fsck
from banger.storage.copies import Room, copy_disk
from banger.storage.flatten import flatten
from banger.storage.overlays import change_base
from banger.system.bounded import run_bounded
from banger.system.ext4 import Superblock, read_superblock
from banger.system.files import allocated_bytes
from banger.system.process import Completed, find_program
from banger.system.qcow2 import read_qcow2

TEMPORARY = ".check-"
NOT_CLOSED = "was not closed; QEMU puts its reference counts right at the next start"
UNFINISHED = "journal to replay, as after a power cut: done in a copy here, by the guest when it boots"
NOTED = "the guest's kernel has met errors in this filesystem"
_IMAGE_S = 3600.0
_LEAKS = 3  # qemu-img check: no damage, but clusters that nothing uses


async def check_overlay(
    overlay: Path, base: Path, progress: Progress, room: Room, former: Path | None = None
) -> DiskCheck:
    """A root disk that is a qcow2 over the image's root `base`: first the qcow2, then the filesystem in it.

    It may name `former`, which was the image's root before, with the same content: a copy of it is looked at then.
    """
    found = DiskCheck(part="root disk", ok=True, notes=[])
    if not overlay.exists():
        return _fault(found, f"{overlay.name} is missing")
    try:
        dirty = _check_header(overlay, former or base, base)
    except Invalid as error:
        return _fault(found, error.message)
    async with _scratch(overlay.parent, ".qcow2") as copy, _scratch(overlay.parent, ".ext4") as raw:
        source = overlay
        if dirty:
            found["notes"].append(NOT_CLOSED)
        if dirty or former is not None:
            await copy_disk(overlay, copy, progress, room)
            source = copy
        if former is not None:
            found["notes"].append(f"it names {former}, where the image's root was before; the next start sees to that")
            await change_base(copy, former, base)
        faults, notes = await _check_tables(source, repair=dirty)
        found["notes"] += notes
        if faults:
            return _fault(found, *faults, "the filesystem in it was not looked at")
        needed = allocated_bytes(base) + allocated_bytes(overlay)
        with room(needed):
            try:
                await flatten(source, base, raw, needed, progress)
            except CommandFailed as error:
                return _fault(found, harmless(error.message))
            return await _check_filesystem(found, raw)


async def check_disk(part: str, disk: Path, progress: Progress, room: Room) -> DiskCheck:
    """A raw disk that is an ext4."""
    found = DiskCheck(part=part, ok=True, notes=[])
    if not disk.exists():
        return _fault(found, f"{disk.name} is missing")
    try:
        unfinished = _unfinished(read_superblock(disk))
    except Invalid as error:
        return _fault(found, error.message.replace(str(disk), "it"))
    if not unfinished:
        return await _check_filesystem(found, disk)
    async with _scratch(disk.parent, ".ext4") as copy:
        await copy_disk(disk, copy, progress, room)
        return await _check_filesystem(found, copy)


@asynccontextmanager
async def _scratch(directory: Path, suffix: str) -> AsyncIterator[Path]:
    """The name of a file that is gone afterwards, if it was made at all."""
    path = directory / f"{TEMPORARY}{secrets.token_hex(6)}{suffix}"
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def _fault(found: DiskCheck, *texts: str) -> DiskCheck:
    found["ok"] = False
    found["notes"] += texts
    return found


def _check_header(overlay: Path, named_as: Path, base: Path) -> bool:
    """Whether it was not closed. Raises `Invalid` before any program would open what must not be opened."""
    head = read_qcow2(overlay)
    if head.foreign:
        raise Invalid(f"{overlay.name} has features that banger gives to no disk; it was not opened")
    named = str(overlay.parent.absolute() / head.backing) if head.backing else "none"
    if (named, head.backing_format) != (str(named_as.absolute()), "raw"):
        told = harmless(f"{named} ({head.backing_format or 'no format'})")
        raise Invalid(f"{overlay.name} lies over {told} and not over the image's {base} (raw); it was not opened")
    if not base.exists():
        raise Invalid(f"the image's root {base} is missing")
    if head.corrupt:
        raise Invalid(f"QEMU has found damage in {overlay.name} and marked it as corrupt")
    return head.dirty


async def _check_tables(overlay: Path, *, repair: bool) -> tuple[list[str], list[str]]:
    """What is wrong with a qcow2's own tables, and what is only to be told."""
    argv = [find_program("qemu-img", package="qemu-utils"), "check", "-f", "qcow2", "--output=json"]
    done = await run_bounded([*argv, *(("-r", "all") if repair else ()), str(overlay)], timeout=_IMAGE_S)
    try:
        counts: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        return [_last_line("qemu-img check", done)], []
    faults = [
        f"{counts[key]} {text} in its tables"
        for key, text in (("corruptions", "errors"), ("check-errors", "places that cannot be checked"))
        if counts.get(key)
    ]
    if not faults and done.status not in (0, _LEAKS):
        faults = [_last_line("qemu-img check", done)]
    leaks = counts.get("leaks")
    return faults, [f"{leaks} clusters are allocated and not used: they take room, and do no harm"] if leaks else []


def _last_line(what: str, done: Completed) -> str:
    lines = done.stderr.decode(errors="replace").strip().splitlines()
    return harmless(f"{what} ended with status {done.status}: {lines[-1] if lines else 'it gave no reason'}")


async def _check_filesystem(found: DiskCheck, disk: Path) -> DiskCheck:
    """Add what is found in an ext4. One with a journal to replay is changed, and must be a copy."""
    try:
        block = read_superblock(disk)
    except Invalid as error:
        return _fault(found, error.message.replace(str(disk), "it"))
    if _unfinished(block):
        found["notes"].append(UNFINISHED)
        if faults := await fsck.finish(disk):
            return _fault(found, *faults)
        block = read_superblock(disk)
    faults = [NOTED] if block.has_errors else []
    faults += await fsck.look(disk)
    return _fault(found, *faults) if faults else found


def _unfinished(block: Superblock) -> bool:
    """A journal to replay, or files that were deleted while they were open: a mount finishes both."""
    return block.needs_recovery or not (block.clean or block.has_errors)
