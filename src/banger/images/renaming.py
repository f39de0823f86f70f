"""Giving an image another name. At any moment it is there under the old name, under the new one, or under neither.

The directory is put aside as `.moving-OLD` first, and gets its name last: the one that image.json has by then. So the
two never disagree where anybody looks, and `sweep` completes or undoes what a killed daemon has begun, by image.json:
while that has the old name, nothing else has been changed; once it has the new one, all is on the way there.
"""

import logging
from collections.abc import Iterable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path

import msgspec

from banger.images.catalog import (
    MOVING,
    check_free,
    find_image,
    read_document,
    read_metadata,
    replace_metadata,
    root_of,
    survey_images,
)
from banger.images.locks import image_alone
from banger.model.errors import BangerError, Invalid
from banger.model.image import Image
from banger.model.names import validate_name
from banger.paths import ImagePaths, Paths
from banger.system.files import sync_path
from banger.system.locks import FileLock

_LOCK_S = 30.0
log = logging.getLogger(__name__)


async def rename_image(paths: Paths, old: str, new: str) -> Image:
    """The image under its new name, which the parents of its children are told as well; all or nothing.

    Nothing is awaited before it is off the list: the caller has made sure that no VM has it. Raises `NotFound`,
    `Invalid` (damaged, or no name), `Conflict` (the name is taken, or machines run on the image), `Timeout`, `OSError`.
    """
    where = paths.image(validate_name(old, "image name"))
    check_free(paths, new)
    if not where.directory.is_dir():
        find_image(paths, old)
    image = read_metadata(where)
    aside = ImagePaths(paths.images / f"{MOVING}{old}")
    with image_alone(root_of(where), old):
        where.directory.rename(aside.directory)
    async with AsyncExitStack() as on_failure:
        changed: dict[str, tuple[str, ...]] = {}
        on_failure.push_async_callback(_put_back, paths, aside, image, changed)
        renamed = msgspec.structs.replace(image, name=new)
        await replace_metadata(paths, aside, renamed)
        for child, parents in _children(paths, old).items():
            changed[child] = parents
            await _set_parents(paths, child, _with(parents, old, new))
        check_free(paths, new)
        _publish(paths, aside, new)
        on_failure.pop_all()
    return renamed


async def _put_back(paths: Paths, aside: ImagePaths, image: Image, changed: Mapping[str, tuple[str, ...]]) -> None:
    """The reverse, in the reverse order; what has failed may fail again."""
    for child, parents in changed.items():
        try:
            await _set_parents(paths, child, parents)
        except (BangerError, OSError) as error:
            log.error("the image %s may name %s wrongly among its parents: %s", child, image.name, error)
    await replace_metadata(paths, aside, image)
    _publish(paths, aside, image.name)


def _children(paths: Paths, name: str) -> dict[str, tuple[str, ...]]:
    """The parents of each image that has it among them, near or far."""
    found = {child: image.parents for child, image, _ in survey_images(paths) if image is not None}
    return {child: parents for child, parents in found.items() if name in parents}


def _with(parents: Iterable[str], old: str, new: str) -> tuple[str, ...]:
    return tuple(new if parent == old else parent for parent in parents)


async def _set_parents(paths: Paths, child: str, parents: tuple[str, ...]) -> None:
    where = paths.image(child)
    lock = FileLock(where.lock)
    await lock.acquire(_LOCK_S)
    try:
        image = read_metadata(where)
        if parents != image.parents:
            await replace_metadata(paths, where, msgspec.structs.replace(image, parents=parents))
    finally:
        lock.release()


def _publish(paths: Paths, aside: ImagePaths, name: str) -> None:
    # both are flushed: a name that is there after a crash must be the one that image.json has
    sync_path(aside.directory)
    aside.directory.rename(paths.image(name).directory)
    sync_path(paths.images)


async def sweep(paths: Paths) -> None:
    """Complete or undo what a killed daemon has begun. Only at start, before anything looks for images."""
    for left in sorted(paths.images.glob(f"{MOVING}*")):
        try:
            await _settle(paths, left)
        except (OSError, BangerError) as error:
            log.error("the image in %s, which was being renamed, is left there: %s", left, error)


async def _settle(paths: Paths, left: Path) -> None:
    old, aside = left.name.removeprefix(MOVING), ImagePaths(left)
    try:
        name = validate_name(read_document(aside).name, "image name")
    except Invalid:
        name = old  # damaged it was before
    if paths.image(name).directory.exists():
        raise Invalid(f"there is another image {name}")
    if name != old:
        for child, parents in _children(paths, old).items():
            await _set_parents(paths, child, _with(parents, old, name))
    log.warning("the image %s was being renamed when the daemon ended; it is called %s now", old, name)
    _publish(paths, aside, name)
