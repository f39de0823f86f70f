"""The volumes on this host: one directory each, described by its volume.json, which has the disk beside it.

A disk is moved by renames and flushes alone. What a killed daemon left in between has a name that begins with a dot,
and `sweep` settles it: a disk is never lost, and is at any moment a VM's or a volume's, or becomes a volume by then.
"""

import difflib
import errno
import logging
import secrets
import shutil
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from banger.model.errors import BangerError, HostRequirement, Invalid, NotFound
from banger.model.names import numbered_name, validate_name
from banger.model.volume import VOLUME_FORMAT, Volume
from banger.paths import Paths, VolumePaths
from banger.system.files import in_thread, remove_tree, sync_path, write_new

MAX_METADATA = 64 * 1024
TEMPORARY = ".tmp-"  # what has a disk becomes a volume
DOOMED = ".gone-"  # what was deleted, disk or not
RESCUED = "rescued"  # a volume whose volume.json cannot be read and tells no name
log = logging.getLogger(__name__)


def list_volumes(paths: Paths) -> list[Volume]:
    """All sound volumes, by name; damaged ones are left out."""
    found = []
    for name in sorted(taken_names(paths)):
        try:
            found.append(_load(paths.volume(name)))
        except Invalid:
            continue  # find_volume says what is wrong with it
    return found


def find_volume(paths: Paths, name: str) -> Volume:
    """The volume of that name. Raises `NotFound` with the nearest names, `Invalid` saying what is damaged."""
    where = paths.volume(validate_name(name, "volume name"))
    if where.directory.is_dir():
        return _load(where)
    names = [volume.name for volume in list_volumes(paths)]
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.4) or names[:3]
    raise NotFound(
        f"there is no volume {name}",
        hint=f"there is {', '.join(near)}"
        if near
        else "`banger vm delete --keep-work-disk` makes one of a VM's work disk",
    )


def taken_names(paths: Paths) -> set[str]:
    """The names that no new volume can have, those of damaged ones included."""
    if not paths.volumes.is_dir():
        return set()
    return {entry.name for entry in paths.volumes.iterdir() if not entry.name.startswith(".")}


def _load(where: VolumePaths) -> Volume:
    """Read and check volume.json. Raises `Invalid`."""
    try:
        volume = _read(where)
    except (OSError, msgspec.MsgspecError) as error:
        raise _damaged(where, f"volume.json cannot be used: {error}") from error
    if volume.format != VOLUME_FORMAT:
        raise _damaged(where, f"it has format {volume.format}, and this banger knows {VOLUME_FORMAT}")
    if volume.name != where.directory.name:
        raise _damaged(where, f"volume.json calls it {volume.name!r}")
    if not _has_disk(where):
        raise _damaged(where, f"{where.disk.name} is missing")
    return volume


def _read(where: VolumePaths) -> Volume:
    with where.metadata.open("rb") as file:
        return msgspec.json.decode(file.read(MAX_METADATA), type=Volume)


def _has_disk(where: VolumePaths) -> bool:
    return where.disk.is_file() and not where.disk.is_symlink()


def _damaged(where: VolumePaths, what: str) -> Invalid:
    return Invalid(
        f"the volume {where.directory.name} is damaged: {what}",
        hint=f"look into {where.directory}; `banger volume delete {where.directory.name}` removes it",
    )


def check_movable(paths: Paths, disk: Path) -> None:
    """Raise `HostRequirement` when the disk lies on another filesystem than volumes do: renames do not go there."""
    home = paths.volumes if paths.volumes.exists() else paths.state
    if disk.stat().st_dev != home.stat().st_dev:
        raise HostRequirement(
            f"{disk} lies on another filesystem than {home}", hint="let both lie on one, and try again"
        )


def keep(paths: Paths, disk: Path, volume: Volume) -> Volume:
    """Make the file `disk` a volume, by renames; its name is numbered where it is taken by now. Blocks.

    Killed on the way, it leaves the file where it was, or what a sweep makes a volume of.
    """
    paths.volumes.mkdir(parents=True, mode=0o700, exist_ok=True)
    volume = msgspec.structs.replace(volume, name=numbered_name(volume.name, taken_names(paths)))
    made = VolumePaths(paths.volumes / f"{TEMPORARY}{secrets.token_hex(6)}")
    made.directory.mkdir(mode=0o700)
    try:
        _describe(made, volume)
        sync_path(paths.volumes)
        disk.rename(made.disk)
    except OSError:
        shutil.rmtree(made.directory)  # the disk is where it was
        raise
    sync_path(made.directory)
    sync_path(disk.parent)
    return _publish(paths, made, volume)


def _describe(where: VolumePaths, volume: Volume) -> None:
    """Write volume.json, durably, over an older one if there is one."""
    partial = where.metadata.with_name(f".{where.metadata.name}")
    partial.unlink(missing_ok=True)
    write_new(partial, msgspec.json.format(msgspec.json.encode(volume)) + b"\n", 0o600)
    sync_path(partial)
    partial.rename(where.metadata)
    sync_path(where.directory)


def _publish(paths: Paths, made: VolumePaths, volume: Volume) -> Volume:
    """Give the finished directory the volume's name, or the next that is free; one that is taken stays as it is."""
    wanted = volume.name
    while True:
        name = numbered_name(wanted, taken_names(paths))
        if name != volume.name:
            volume = msgspec.structs.replace(volume, name=name)
            _describe(made, volume)
        try:
            made.directory.rename(paths.volume(name).directory)
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                continue  # somebody else was quicker
            raise
        sync_path(paths.volumes)
        return volume


def take(paths: Paths, name: str, target: Path) -> None:
    """Make a volume's disk the file `target`, which must not exist, by renames; the volume is gone then. Blocks.

    Raises like `find_volume`. Killed on the way, it leaves the volume or the file; on failure the volume is back.
    """
    volume = find_volume(paths, name)
    if target.exists():
        raise FileExistsError(errno.EEXIST, "a file is there already", str(target))
    # first off the list: from here on it is whole again after a sweep, or gone
    moved = VolumePaths(paths.volumes / f"{TEMPORARY}{secrets.token_hex(6)}")
    paths.volume(name).directory.rename(moved.directory)
    try:
        moved.disk.rename(target)
    except OSError:
        _publish(paths, moved, volume)
        raise
    sync_path(target.parent)
    shutil.rmtree(moved.directory)
    sync_path(paths.volumes)


async def delete(paths: Paths, name: str) -> None:
    """Take a volume off the list at once, a damaged one too, then remove its files. Raises `NotFound`, `Invalid`."""
    directory = paths.volume(validate_name(name, "volume name")).directory
    if not directory.is_dir():
        find_volume(paths, name)
    doomed = paths.volumes / f"{DOOMED}{secrets.token_hex(6)}"
    directory.rename(doomed)
    sync_path(paths.volumes)
    await remove_tree(doomed)


async def sweep(paths: Paths) -> list[Volume]:
    """Settle what a killed daemon left: whatever has a disk becomes a volume, which is returned; all else goes.

    Only at start, while nothing works on volumes.
    """
    for left in paths.volumes.glob(f"{DOOMED}*"):
        await remove_tree(left)
    saved = []
    for left in sorted(paths.volumes.glob(f"{TEMPORARY}*")):
        where = VolumePaths(left)
        if _has_disk(where):
            saved.append(await in_thread(_publish, paths, where, _described(where)))
        else:
            await remove_tree(left)
    return saved


def _described(where: VolumePaths) -> Volume:
    """What a volume that has no name yet says of itself; a disk is more than its description."""
    try:
        volume = _read(where)
        validate_name(volume.name)
    except (OSError, msgspec.MsgspecError, BangerError) as error:
        log.warning("%s: volume.json cannot be used: %s", where.directory, error)
        volume = Volume(name=RESCUED, image="", vm="", created_at=datetime.now(UTC).isoformat(timespec="seconds"))
        _describe(where, volume)
    return volume
