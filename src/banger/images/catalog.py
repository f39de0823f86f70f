"""The images on this host: one directory each, described by its image.json."""

import difflib
import errno
import secrets
import stat
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from banger.images.boot import with_root_type
from banger.images.legacy import upgrade
from banger.images.locks import image_alone
from banger.model.errors import Conflict, Invalid, NotFound
from banger.model.image import IMAGE_FORMAT, WORK_SEED, Image, ImagePart
from banger.model.names import validate_name
from banger.paths import ImagePaths, Paths
from banger.system.files import in_thread, make_read_only, remove_tree, sha256_of, sync_path

MAX_METADATA = 1024 * 1024
TEMPORARY = ".tmp-"
MOVING = ".moving-"  # then the old name of an image that is getting another one
REQUIRED_PARTS = ("root", "kernel", "initramfs")


def list_images(paths: Paths) -> list[Image]:
    """All sound images, by name; directories that are broken or not ours are left out."""
    found = []
    for where in _directories(paths):
        try:
            found.append(_load(where))
        except Invalid:
            continue  # find_image says what is wrong with it
    return found


def survey_images(paths: Paths) -> Iterator[tuple[str, Image | None, str]]:
    """All images, by name, damaged ones too: what image.json says where it can be used, and what is wrong."""
    for where in _directories(paths):
        image = None
        try:
            image = read_metadata(where)
            yield where.directory.name, _checked(where, image), ""
        except Invalid as error:
            yield where.directory.name, image, error.message


def children_of(paths: Paths, name: str) -> list[str]:
    """Names of the images whose nearest parent this one is; damaged ones count where their image.json can be read."""
    return [child for child, image, _ in survey_images(paths) if image is not None and image.parents[:1] == (name,)]


def _directories(paths: Paths) -> list[ImagePaths]:
    found = sorted(paths.images.iterdir()) if paths.images.is_dir() else []
    return [ImagePaths(entry) for entry in found if not entry.name.startswith(".") and entry.is_dir()]


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
    """Where a part of an image lies; of a registered one, perhaps elsewhere. Raises `KeyError` for an unknown role."""
    return paths.image(image.name).directory / image.parts[role].file


def _load(where: ImagePaths) -> Image:
    """Read image.json and check that the parts are there. Raises `Invalid`.

    A work seed that is not is left out: another can be made at any time.
    """
    return _checked(where, read_metadata(where))


def _checked(where: ImagePaths, image: Image) -> Image:
    found = {role: part_fault(where, part, image) or part_changed(where, part) for role, part in image.parts.items()}
    faults = {role: fault for role, fault in found.items() if fault}
    if faults.pop(WORK_SEED, ""):
        kept = {role: part for role, part in image.parts.items() if role != WORK_SEED}
        image = msgspec.structs.replace(image, parts=kept)
    for fault in faults.values():
        raise _broken(where, fault, managed=image.managed)
    return image


def read_metadata(where: ImagePaths) -> Image:
    """What image.json says, sound in itself, whatever version has written it. Raises `Invalid`."""
    image = read_document(where)
    if image.name != where.directory.name:
        raise _broken(where, f"image.json calls it {image.name!r}")
    return image


def read_document(where: ImagePaths) -> Image:
    """The same of an image that is getting another name: its directory has none."""
    try:
        with where.metadata.open("rb") as file:
            document = msgspec.json.decode(file.read(MAX_METADATA))
        if isinstance(document, dict) and _is_newer(document.get("format")):
            raise _broken(where, f"it has format {document['format']}, and this banger knows {IMAGE_FORMAT}")
        image = msgspec.convert(upgrade(document), type=Image)
    except (OSError, msgspec.MsgspecError, RecursionError) as error:
        raise _broken(where, f"image.json cannot be used: {error}") from error
    if image.format < 1:
        raise _broken(where, f"it has format {image.format}, which no banger has made")
    if missing := [role for role in REQUIRED_PARTS if role not in image.parts]:
        raise _broken(where, f"image.json has no {missing[0]}")
    return msgspec.structs.replace(image, boot_args=with_root_type(image.boot_args))


def _is_newer(version: object) -> bool:
    return isinstance(version, int) and version > IMAGE_FORMAT


def part_fault(where: ImagePaths, part: ImagePart, image: Image) -> str:
    """What can be seen at once to be wrong with the file of an image's part; empty when nothing is.

    Whether a file elsewhere was written to since it was registered, `part_changed` says.
    """
    if not image.managed and Path(part.file).is_absolute() and "\0" not in part.file:
        return _foreign_fault(Path(part.file), part)
    if part.file in ("", ".", "..") or "/" in part.file or "\0" in part.file:
        return f"image.json names a file outside it: {part.file!r}"
    path = where.directory / part.file
    if path.is_symlink() or not path.is_file():
        return f"{part.file} is missing"
    if path.stat().st_size != part.bytes:
        return f"{part.file} has {path.stat().st_size} bytes instead of {part.bytes}"
    return ""


def _foreign_fault(path: Path, part: ImagePart) -> str:
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return f"{path} is gone"
    except OSError as error:
        return f"{path} cannot be read: {error.strerror}"
    if not stat.S_ISREG(status.st_mode):
        return f"{path} is no file any more"
    if status.st_size != part.bytes:
        return f"{path} has {status.st_size} bytes, and had {part.bytes} when it was registered"
    return ""


def part_changed(where: ImagePaths, part: ImagePart) -> str:
    """Says so when somebody has written to the file of a registered image, which is there; else empty."""
    path = where.directory / part.file
    if part.modified_ns and path.stat().st_mtime_ns != part.modified_ns:
        changed = datetime.fromtimestamp(path.stat().st_mtime, UTC).isoformat(timespec="seconds")
        return f"{path} was changed after it was registered, at {changed}"
    return ""


def damaged_hint(name: str, *, managed: bool = True) -> str:
    """What to do about a damaged image."""
    if managed:
        return f"`banger image delete {name}`, and make it again"
    return (
        f"`banger image register {name}` looks at its files again, and takes them when they have the same content; "
        "with --rootfs, --kernel and --replace it takes others"
    )


def _broken(where: ImagePaths, what: str, *, managed: bool = True) -> Invalid:
    name = where.directory.name
    state = "is damaged" if managed else "is not what was registered"
    return Invalid(f"the image {name} {state}: {what}", hint=damaged_hint(name, managed=managed))


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
    """Raise `Conflict` when an image has this name, or may get it back."""
    here = paths.image(validate_name(name, "image name")).directory
    if here.exists() or here.with_name(f"{MOVING}{name}").exists():
        raise Conflict(
            f"there is an image {name} already", hint=f"choose another name, or `banger image delete {name}` first"
        )


def publish(paths: Paths, image: Image, directory: Path) -> None:
    """Write image.json into the finished directory and give the image its name, at once and durably.

    Raises `Conflict` when an image has that name.
    """
    check_free(paths, image.name)
    write_metadata(ImagePaths(directory).metadata, image)
    sync_path(directory)
    try:
        directory.rename(paths.image(image.name).directory)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            check_free(paths, image.name)
        raise
    sync_path(paths.images)


def write_metadata(file: Path, image: Image) -> None:
    """Write a new image.json in the present format, read-only and durable but for its name."""
    document = msgspec.structs.replace(image, format=IMAGE_FORMAT)
    file.write_bytes(msgspec.json.format(msgspec.json.encode(document)) + b"\n")
    make_read_only(file)
    sync_path(file)


async def replace_metadata(paths: Paths, where: ImagePaths, image: Image) -> None:
    """Let the image in this directory be described so, at once and durably."""
    async with workspace(paths) as work:
        fresh = work / where.metadata.name

        def replace() -> None:
            write_metadata(fresh, image)
            fresh.rename(where.metadata)
            sync_path(where.directory)

        await in_thread(replace)


def root_of(where: ImagePaths) -> Path:
    """The root file that machines of an image lock, of a damaged one too."""
    try:
        image = read_metadata(where)
    except Invalid:
        return where.root
    return where.root if image.managed else where.directory / image.parts["root"].file


async def delete_image(paths: Paths, name: str) -> None:
    """Take an image off the list at once, then remove its files; of a registered one, not what lies elsewhere.

    Nothing is awaited before it is off the list. Raises `Conflict` while machines run on it, or it is read; the caller
    knows of the machines that do not run.
    """
    image = paths.image(validate_name(name, "image name"))
    if not image.directory.is_dir():
        find_image(paths, name)
    doomed = paths.images / f"{TEMPORARY}{secrets.token_hex(6)}"
    with image_alone(root_of(image), name):
        image.directory.rename(doomed)
    await remove_tree(doomed)
