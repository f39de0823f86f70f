"""Replacing parts of an image that is in use: the old image or the new one, never half of each, whatever happens."""

import errno
import logging
import re
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec

from banger.images.catalog import (
    find_image,
    list_images,
    measure_parts,
    read_metadata,
    workspace,
    write_metadata,
)
from banger.images.initramfs import renew_init
from banger.model.errors import HostRequirement
from banger.model.image import IMAGE_FORMAT, INIT_VERSION, WORK_SEED, Image, ImagePart
from banger.paths import ImagePaths, Paths
from banger.system.files import in_thread, sync_path
from banger.system.locks import FileLock

UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS)
_LOCK_S = 30.0
# the names of parts that are ever replaced, as an image is made with them and as `_measure` calls them
_REPLACEABLE = re.compile(
    r"work-seed(-[0-9a-f]{8})?\.ext4|initramfs(-[0-9a-f]{8})?\.cpio|(vmlinux|packages|kernel|modules)-[0-9a-f]{8}(\.\w+)?"
)
# what a promotion that was cut short has copied into a registered image
_COPIED = re.compile(r"root\.ext4|bzImage|vmlinux|kernel\.config|packages\.json|modules\.tar")
_SEED = re.compile(r"work-seed(-[0-9a-f]{8})?\.ext4")
log = logging.getLogger(__name__)


async def replace_parts(paths: Paths, image: Image, files: Mapping[str, Path], **changes: object) -> Image:
    """The image with these files, by role, and these other values in its image.json.

    The files lie in a `workspace` of their own and are taken from it. What they replace stays until the daemon starts
    next, for those who are about to open it. `image` is what the caller has seen: when somebody else has changed the
    same meanwhile, the image as it is now is returned, and nothing is done. Raises `OSError` where the image's
    directory cannot be written, `Timeout`, and like `find_image`.
    """
    measured = await in_thread(_measure, files)
    lock = FileLock(paths.image(image.name).lock)
    await lock.acquire(_LOCK_S)
    try:
        return await in_thread(_replace, paths, image, files, measured, changes)
    finally:
        lock.release()


def _measure(files: Mapping[str, Path]) -> dict[str, ImagePart]:
    """The parts that the files will be, durable, and under names that nothing has had."""
    parts = {}
    for role, path in files.items():
        part = measure_parts(path.parent, {role: path})[role]
        parts[role] = msgspec.structs.replace(part, file=f"{path.stem}-{secrets.token_hex(4)}{path.suffix}")
    return parts


def _replace(
    paths: Paths,
    image: Image,
    files: Mapping[str, Path],
    measured: Mapping[str, ImagePart],
    changes: Mapping[str, object],
) -> Image:
    where, now = paths.image(image.name), find_image(paths, image.name)
    if any(now.parts.get(role) != image.parts.get(role) for role in files) or any(
        getattr(now, name) != getattr(image, name) for name in changes
    ):
        return now
    made = msgspec.structs.replace(now, parts={**now.parts, **measured}, format=IMAGE_FORMAT, **changes)
    document = next(iter(files.values())).with_name("image.json")
    write_metadata(document, made)
    for role, path in files.items():
        path.rename(where.directory / measured[role].file)
    sync_path(where.directory)
    document.rename(where.metadata)
    sync_path(where.directory)
    if WORK_SEED in files:
        # those of earlier replacements, which nobody can be about to open any more
        _remove(where, _SEED, (now, made))
    return made


def _unused(where: ImagePaths, names: re.Pattern[str], images: Iterable[Image]) -> list[Path]:
    """The files with such names that none of the images has."""
    used = {part.file for image in images for part in image.parts.values()}
    return [path for path in where.directory.iterdir() if names.fullmatch(path.name) and path.name not in used]


def _left(where: ImagePaths, image: Image) -> list[Path]:
    """The files in an image's directory that are no parts of it, and were or were about to be."""
    return _unused(where, _REPLACEABLE, (image,)) + ([] if image.managed else _unused(where, _COPIED, (image,)))


def _remove(where: ImagePaths, names: re.Pattern[str], images: Iterable[Image]) -> None:
    for path in _unused(where, names, images):
        path.unlink()


def replaced_parts(paths: Paths) -> list[Path]:
    """The files of parts that were replaced, in all images: nobody may be about to open one, nor be replacing any."""
    found = []
    for image in list_images(paths):
        found += _left(paths.image(image.name), read_metadata(paths.image(image.name)))
    return found


def sweep_parts(paths: Paths) -> None:
    """Remove replaced parts, and what a killed daemon had not yet put to use. Only at start."""
    for image in list_images(paths):
        where = paths.image(image.name)
        lock = FileLock(where.lock)
        try:
            if lock.try_acquire():
                for path in _left(where, find_image(paths, image.name)):
                    path.unlink(missing_ok=True)
        except OSError as error:
            log.warning("cannot look for what is left over in the image %s: %s", image.name, error)
        finally:
            lock.release()


async def bring_up_to_date(paths: Paths, image: Image) -> Image:
    """The image with a first process that this banger's machines need; the image itself when it has one, or somebody
    else's.

    Raises `HostRequirement` where the image's directory cannot be written, and like `replace_parts`.
    """
    if image.init_version >= INIT_VERSION or image.init_version == 0:
        return image
    try:
        async with workspace(paths) as work:
            fresh = work / "initramfs.cpio"
            old = paths.image(image.name).directory / image.parts["initramfs"].file
            await in_thread(lambda: fresh.write_bytes(renew_init(old.read_bytes())))
            return await replace_parts(paths, image, {"initramfs": fresh}, init_version=INIT_VERSION)
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise
        raise HostRequirement(
            f"the image {image.name} is of an older banger, and its initramfs cannot be replaced: {error.strerror}",
            hint=f"let the daemon write {paths.image(image.name).directory}, or make the VM with --no-work-disk",
        ) from error
