"""The first file in an archive of an image: what the image is, and what else is in the archive.

What an archive says is anybody's word: an image comes of it only after every field was looked at.
"""

import re
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

import msgspec

from banger.images.catalog import REQUIRED_PARTS
from banger.images.draft import usual_files
from banger.model.errors import Invalid
from banger.model.image import IMAGE_FORMAT, MODULES, WORK_SEED, Image, ImagePart
from banger.model.names import validate_name
from banger.model.sizes import GIB, MIB, show_size
from banger.model.text import harmless
from banger.paths import ImagePaths

ARCHIVE_FORMAT = 1
MANIFEST = "banger-image.json"
MANIFEST_MAX = MIB
# what parts there are, and what each is called in an archive, whatever its file is called in the image; large ones last
_USUAL = {role: path.name for role, path in usual_files(ImagePaths(Path())).items()}
FILES = {role: _USUAL[role] for role in sorted(_USUAL, key=lambda role: (role == "root", role == WORK_SEED))}
_LARGEST = {"kernel": GIB, "bzimage": GIB, "initramfs": GIB, "config": 16 * MIB, "manifest": 64 * MIB, MODULES: 2 * GIB}
_TEXT_MAX, _BOOT_ARGS_MAX, _NUMBER_MAX = 1000, 1500, 1 << 24
_KEY = re.compile(r"|SHA256:[A-Za-z0-9+/]{43}")
_DIGEST = re.compile(r"[0-9a-f]{64}")


class Packed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file in an archive: its part's role, its name, its bytes with and without holes, its SHA-256 in hex."""

    role: str
    file: str
    bytes: int
    stored: int
    sha256: str


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`image` is the content of its image.json, with the files' names in the archive."""

    format: int
    image: Image
    parts: list[Packed]

    @property
    def stored(self) -> int:
        """Bytes of all parts, without their holes."""
        return sum(part.stored for part in self.parts)


def describe(image: Image, stored: Mapping[str, int]) -> Manifest:
    """The manifest of an image's archive, by how many bytes without holes each part has. Raises `Invalid`."""
    if unknown := sorted(set(image.parts) - set(FILES)):
        raise Invalid(
            f"the image {image.name} has a part that archives do not know: {unknown[0]}",
            hint="a newer banger has made it: export it with that one",
        )
    roles = [role for role in FILES if role in image.parts]
    parts = {role: ImagePart(FILES[role], image.parts[role].bytes, image.parts[role].sha256) for role in roles}
    packed = [Packed(role, part.file, part.bytes, stored[role], part.sha256) for role, part in parts.items()]
    return Manifest(ARCHIVE_FORMAT, msgspec.structs.replace(image, parts=parts, managed=True), packed)


def encode(manifest: Manifest) -> bytes:
    return msgspec.json.format(msgspec.json.encode(manifest)) + b"\n"


def read_manifest(raw: bytes, *, largest: int) -> Manifest:
    """The manifest of an archive whose parts have at most `largest` bytes together, with holes. Raises `Invalid`."""
    try:
        version = msgspec.json.decode(raw, type=_Version).format
        if version != ARCHIVE_FORMAT:
            raise _refused(f"its format is {version}, and this banger knows {ARCHIVE_FORMAT}", newer=True)
        manifest = msgspec.json.decode(raw, type=Manifest)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise _refused(f"{MANIFEST} cannot be used: {harmless(str(error))}") from error
    if manifest.image.format > IMAGE_FORMAT:
        raise _refused(f"its image.json has format {manifest.image.format}", newer=True)
    _check_parts(manifest)
    _check_image(manifest.image)
    if (total := sum(part.bytes for part in manifest.parts)) > largest:
        raise Invalid(
            f"the image has {show_size(total)}, and at most {show_size(largest)} are taken",
            hint="set import_max_mib in config.toml higher, if you trust where it comes from",
        )
    return manifest


class _Version(msgspec.Struct):
    format: int


def _check_parts(manifest: Manifest) -> None:
    roles = [part.role for part in manifest.parts]
    if unknown := [role for role in roles if role not in FILES]:
        raise _refused(f"it holds a part of an unknown kind, {harmless(unknown[0])!r}", newer=True)
    if len(set(roles)) != len(roles):
        raise _refused("its manifest names a part twice")
    if missing := [role for role in REQUIRED_PARTS if role not in roles]:
        raise _refused(f"it has no {missing[0]}")
    for part in manifest.parts:
        if part.file != FILES[part.role]:
            raise _refused(f"the file of its {part.role} is {harmless(part.file)!r} instead of {FILES[part.role]}")
        if not (0 < part.bytes <= _LARGEST.get(part.role, 1 << 62) and 0 <= part.stored <= part.bytes):
            raise _refused(f"{part.file} is said to have {part.bytes} bytes, {part.stored} of them not zeros")
        if not _DIGEST.fullmatch(part.sha256):
            raise _refused(f"there is no digest of {part.file}")
    if manifest.image.parts != {part.role: ImagePart(part.file, part.bytes, part.sha256) for part in manifest.parts}:
        raise _refused("its image.json tells other parts than its manifest")


def _check_image(image: Image) -> None:
    validate_name(image.name, "image name")
    texts = {"distro": image.distro, "release": image.release, "kernel_release": image.kernel_release}
    for name, text in {**texts, "origin": image.origin}.items():
        if len(text) > _TEXT_MAX or not text.isprintable():
            raise _refused(f"its {name} is too long, or holds control characters")
    args = image.boot_args
    if len(args) > _BOOT_ARGS_MAX or not (args.isascii() and args.isprintable()):
        raise _refused("its boot_args are too long, or are not plain ASCII")
    if "rootfstype=ext4" not in args.split():
        raise _refused("its boot_args lack rootfstype=ext4")
    if not _KEY.fullmatch(image.seed_key):
        raise _refused("its seed_key is no fingerprint of a key")
    for name in ("packages", "memory_mib", "init_version"):
        if not 0 <= getattr(image, name) <= _NUMBER_MAX:
            raise _refused(f"its {name} is {getattr(image, name)}")
    try:
        datetime.fromisoformat(image.created_at)
    except ValueError as error:
        raise _refused("its created_at is no time") from error


def imported(manifest: Manifest, name: str, source: str) -> Image:
    """The image that comes of a manifest, under this name; `source` is said in its origin.

    Nothing on this host is its parent: names of images mean something else here.
    """
    told = manifest.image
    return Image(
        name=name,
        distro=told.distro,
        release=told.release,
        kernel_release=told.kernel_release,
        boot_args=told.boot_args,
        parts=told.parts,
        packages=told.packages,
        created_at=told.created_at,
        origin=harmless(f"imported from {source}; {told.origin}"),
        needs_acpi=told.needs_acpi,
        has_opencode=told.has_opencode,
        init_version=told.init_version,
        seed_key=told.seed_key,
        memory_mib=told.memory_mib,
    )


def _refused(why: str, *, newer: bool = False) -> Invalid:
    hint = "a newer banger has written it: update this one" if newer else "export the image again"
    return Invalid(f"the archive cannot be imported: {why}", hint=hint)
