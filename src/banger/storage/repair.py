"""Making a work disk fit to boot before its machine starts, without mounting it.

A disk that is in order costs a look into it. A journal is replayed in place, as the guest's kernel would do. All else
happens to a copy, which takes the disk's place when it is whole: until then the disk is what it was.
"""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from banger.model.errors import BangerError, CommandFailed, HostRequirement, Invalid, Timeout
from banger.model.progress import Progress
from banger.model.text import harmless
from banger.storage.copies import Room, copy_disk
from banger.storage.findings import Findings
from banger.storage.inspect import inspect
from banger.storage.partial import partial_of
from banger.storage.unnest import blocks_to_add, unnest
from banger.system.debugfs import edit
from banger.system.e2fsck import check_and_mend, replay_journal, undo_replay
from banger.system.e2fsprogs import reclaim
from banger.system.ext4 import check_ext4, read_superblock
from banger.system.files import in_thread, sync_path
from banger.system.process import failure

# each round of repairs may bring something to light: a home two levels too deep
_ROUNDS = 8
# for a few small files, and the blocks of their directories
_SPARE_BLOCKS, _SPARE_INODES = 16, 4
_SHOWN = 5
_LAST_LINES = 4
_BY_HAND = (
    "try it with a copy: cp --sparse=always {disk} copy.ext4; e2fsck -f -y copy.ext4 (docs/repair.md); "
    "`banger vm delete --keep-work-disk` keeps the disk as a volume"
)
_HOST = "`banger capacity` shows the room on the host's disk, `dmesg` what else it may have"


async def inspect_home(disk: Path, key: str) -> Findings:
    """What is wrong with a work disk that nothing uses; nothing is changed.

    `key` is the public key line that must let its owner in. Raises `Invalid` when the disk holds no ext4.
    """
    return await in_thread(inspect, disk, key, _today())


async def mend(disk: Path, key: str, progress: Progress, room: Room) -> None:
    """Make a work disk that no engine has open fit to boot; what was done is noted, a line each.

    `key` is the public key line that must let its owner in; `room` is asked for what a full copy takes. Raises
    `Invalid` when it cannot be mended; `HostRequirement`, `CommandFailed`, `Timeout`. The disk is then what it was.
    """
    undo = disk.with_name(f".{disk.name}.undo")
    try:
        await _sweep(disk, undo)
        await _mend(disk, key, undo, progress, room)
    except (BangerError, OSError) as error:
        if undo.exists():
            await undo_replay(disk, undo)
        if isinstance(error, OSError):
            raise HostRequirement(f"cannot mend {disk}: {error.strerror}", hint=_HOST) from error
        raise
    finally:
        undo.unlink(missing_ok=True)


async def _mend(disk: Path, key: str, undo: Path, progress: Progress, room: Room) -> None:
    findings = await inspect_home(disk, key)
    check = findings.check
    if findings.journal and not check:
        if await replay_journal(disk, undo):
            progress.note("the machine had not shut down: the work disk's journal was replayed")
            findings = await inspect_home(disk, key)
            check = findings.check
        else:
            check = "the work disk's journal cannot be replayed to its end"
    if check:
        progress.note(f"{check}: a copy of the work disk is checked and mended")
        findings = await _mend_copy(disk, key, progress, room)
    elif not findings.home_is_fine and await _has_room(disk, findings, progress):
        try:
            findings = await _mend_copy(disk, key, progress, room)
        except HostRequirement as error:
            # it boots with these as well
            progress.note(f"{error.message}, so this stays as it is: {'; '.join(findings.lines)}")
    for line in findings.left:
        progress.note(line)


async def _mend_copy(disk: Path, key: str, progress: Progress, room: Room) -> Findings:
    async with _copy_of(disk, progress, room) as copy:
        try:
            findings, notes = await _mend_all(copy, key, progress)
        except (CommandFailed, Invalid, Timeout) as error:
            # it names the copy, which is gone
            kind = Timeout if isinstance(error, Timeout) else Invalid
            words = f"cannot mend {disk}, which is as it was: {error.message.replace(str(copy), disk.name)}"
            details = {name: value for name, value in error.details.items() if name != "argv"}
            raise kind(words, hint=_BY_HAND.format(disk=disk), details=details) from error
        await in_thread(_take_the_place, copy, disk)
    for note in notes:
        progress.note(note)
    return findings


async def _mend_all(copy: Path, key: str, progress: Progress) -> tuple[Findings, list[str]]:
    """What there still is to say of it, and what was done, a line each."""
    done = await check_and_mend(copy)
    if done.status not in (0, 1):
        raise failure(done.argv, done.status, " / ".join(done.lines[-_LAST_LINES:]).encode())
    notes = ["e2fsck found errors in the work disk and mended them"] if done.status else []
    for _ in range(_ROUNDS):
        findings = await inspect_home(copy, key)
        if findings.check or findings.journal:
            raise Invalid(f"e2fsck went through it, and still {findings.lines[0]}")
        if findings.home_is_fine or not await _has_room(copy, findings, progress):
            break
        notes += await _put_right(copy, findings)
    await check_ext4(copy)
    return findings, notes


async def _put_right(copy: Path, findings: Findings) -> list[str]:
    """What was done to root's home, a line each."""
    if findings.nested is not None:
        moved = await unnest(copy, findings.nested, _today())
        notes = [f"root's home lay one level too deep: {moved.moved} entries were moved from /root/root to /root"]
        if moved.kept:
            names = [harmless(name.decode(errors="replace")) for name in moved.kept[:_SHOWN]]
            more = f" and {len(moved.kept) - _SHOWN} more" if len(moved.kept) > _SHOWN else ""
            notes.append(f"kept beside what was there already: {', '.join(names)}{more}")
        return notes
    await edit(copy, [command for repair in findings.repairs for command in repair.commands])
    done = await check_and_mend(copy, trusted=True)
    if done.status not in (0, 1):
        raise done.failure()
    return [repair.done for repair in findings.repairs]


async def _has_room(disk: Path, findings: Findings, progress: Progress) -> bool:
    """Whether the repairs fit into the filesystem. A full one is booted as it is, so that its owner can make room."""
    superblock = read_superblock(disk)
    blocks = _SPARE_BLOCKS
    if findings.nested is not None:
        blocks += await in_thread(blocks_to_add, disk, findings.nested, _today())
    if superblock.free_bytes >= blocks * superblock.block_size and superblock.free_inodes >= _SPARE_INODES:
        return True
    progress.note(f"the work disk is full, so this stays as it is: {'; '.join(findings.lines)}")
    return False


@asynccontextmanager
async def _copy_of(disk: Path, progress: Progress, room: Room) -> AsyncIterator[Path]:
    """A copy beside the disk, gone afterwards unless it has taken the disk's place; at once where blocks are shared."""
    copy = partial_of(disk)
    try:
        await copy_disk(disk, copy, progress, room)
        copy.chmod(0o600)
        yield copy
    finally:
        copy.unlink(missing_ok=True)


def _take_the_place(copy: Path, disk: Path) -> None:
    sync_path(copy)
    copy.rename(disk)
    sync_path(disk.parent)


async def _sweep(disk: Path, undo: Path) -> None:
    """What a mend that was killed has left: what it could not finish replaying is taken back, and copies go."""
    if not disk.exists():
        raise Invalid(f"the work disk {disk} is missing")
    reclaim(disk)
    if undo.exists():
        await undo_replay(disk, undo)
    for leftover in disk.parent.glob(f".{disk.name}.*"):
        leftover.unlink(missing_ok=True)


def _today() -> str:
    return time.strftime("%Y-%m-%d")
