"""The images on this host: one directory each, described by its image.json."""

import difflib
import errno
import secrets
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec

from banger.images.locks import image_alone
from banger.model.errors import Conflict, Invalid, NotFound
from banger.model.image import IMAGE_FORMAT, WORK_SEED, Image, ImagePart
from banger.model.names import validate_name
from banger.paths import ImagePaths, Paths
from banger.system.files import make_read_only, remove_tree, sha256_of, sync_path

MAX_METADATA = 1024 * 1024
TEMPORARY = ".tmp-"
REQUIRED_PARTS = ("root", "kernel", "initramfs")


def list_images(paths: Paths) -> list[Image]:
    """All sound images, by name; directories that are broken or not ours are left out."""
    found = []
    for directory in sorted(paths.images.iterdir()) if paths.images.is_dir() else []:
        if directory.is_dir() and not directory.name.startswith("."):
            try:
                found.append(_load(ImagePaths(directory)))
            except Invalid:
                continue  # find_image says what is wrong with it
    return found


def find_image(paths: Paths, name: str) -> Image:
    """The image of that name. Raises `NotFound` with the nearest names, `Invalid` saying what is broken."""
    where = paths.image(validate_name(name, "image name"))
    if where.directory.is_dir():
        return _load(where)
    names = [image.name for image in list_images(paths)]
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.4) or names[:3]
    told = f"there is {', '.join(near)}; or make one" if near else "make one"
    raise NotFound(f"there is no image {name}", hint=f"{told} with `banger image bootstrap debian`")


def part_path(paths: Paths, image: Image, role: str) -> Path:
    """Where a part of an image lies. Raises `KeyError` for a role that the image has not."""
    return paths.image(image.name).directory / image.parts[role].file


def _load(where: ImagePaths) -> Image:
    """Read image.json and check that the parts are there. Raises `Invalid`.

    A work seed that is not is left out: another can be made at any time.
    """
    image = read_metadata(where)
    faults = {role: fault for role, part in image.parts.items() if (fault := part_fault(where, part))}
    if faults.pop(WORK_SEED, ""):
        kept = {role: part for role, part in image.parts.items() if role != WORK_SEED}
        image = msgspec.structs.replace(image, parts=kept)
    for fault in faults.values():
        raise _broken(where, fault)
    return image


def read_metadata(where: ImagePaths) -> Image:
    """What image.json says, sound in itself. Raises `Invalid`."""
    try:
        with where.metadata.open("rb") as file:
            image = msgspec.json.decode(file.read(MAX_METADATA), type=Image)
    except (OSError, msgspec.MsgspecError) as error:
        raise _broken(where, f"image.json cannot be used: {error}") from error
    if not 1 <= image.format <= IMAGE_FORMAT:
        raise _broken(where, f"it has format {image.format}, and this banger knows {IMAGE_FORMAT}")
    if image.name != where.directory.name:
        raise _broken(where, f"image.json calls it {image.name!r}")
    if missing := [role for role in REQUIRED_PARTS if role not in image.parts]:
        raise _broken(where, f"image.json has no {missing[0]}")
    return image


def part_fault(where: ImagePaths, part: ImagePart) -> str:
    """What can be seen at once to be wrong with a part's file; empty when nothing is."""
    if part.file in ("", ".", "..") or "/" in part.file or "\0" in part.file:
        return f"image.json names a file outside it: {part.file!r}"
    path = where.directory / part.file
    if path.is_symlink() or not path.is_file():
        return f"{part.file} is missing"
    if path.stat().st_size != part.bytes:
        return f"{part.file} has {path.stat().st_size} bytes instead of {part.bytes}"
    return ""


def _broken(where: ImagePaths, what: str) -> Invalid:
    name = where.directory.name
    return Invalid(f"the image {name} is damaged: {what}", hint=f"remove {where.directory} and make it again")


@asynccontextmanager
async def workspace(paths: Paths) -> AsyncIterator[Path]:
    """A fresh directory on the images' filesystem that is gone afterwards, whatever happens."""
    paths.images.mkdir(parents=True, mode=0o700, exist_ok=True)
    directory = paths.images / f"{TEMPORARY}{secrets.token_hex(6)}"
    directory.mkdir(mode=0o700)
    try:
        yield directory
    finally:
        await remove_tree(directory)


async def sweep(paths: Paths) -> None:
    """Remove workspaces that a killed daemon left. Only at start, while nothing makes an image."""
    for left in paths.images.glob(f"{TEMPORARY}*"):
        await remove_tree(left)


def measure_parts(directory: Path, roles: Mapping[str, Path]) -> dict[str, ImagePart]:
    """Length and digest of each file in the directory; the files become read-only and durable."""
    parts = {}
    for role, path in roles.items():
        make_read_only(path)
        sync_path(path)
        parts[role] = ImagePart(path.relative_to(directory).name, path.stat().st_size, sha256_of(path))
    return parts


def check_free(paths: Paths, name: str) -> None:
    """Raise `Conflict` when an image has this name."""
    if paths.image(validate_name(name, "image name")).directory.exists():
        raise Conflict(
            f"there is an image {name} already", hint=f"choose another --name, or remove {paths.image(name).directory}"
        )


def publish(paths: Paths, image: Image, directory: Path) -> None:
    """Write image.json into the finished directory and give the image its name, at once and durably."""
    metadata = ImagePaths(directory).metadata
    metadata.write_bytes(msgspec.json.format(msgspec.json.encode(image)) + b"\n")
    make_read_only(metadata)
    sync_path(metadata)
    sync_path(directory)
    try:
        directory.rename(paths.image(image.name).directory)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            check_free(paths, image.name)
        raise
    sync_path(paths.images)


async def delete_image(paths: Paths, name: str) -> None:
    """Take an image off the list at once, then remove its files. Raises `Conflict` while machines run on it.

    The caller knows of those that do not run.
    """
    image = paths.image(validate_name(name, "image name"))
    if not image.directory.is_dir():
        find_image(paths, name)
    doomed = paths.images / f"{TEMPORARY}{secrets.token_hex(6)}"
    with image_alone(image.root):
        image.directory.rename(doomed)
    await remove_tree(doomed)
