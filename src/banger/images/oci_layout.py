"""What an OCI layout or a docker archive says that it holds, and which of its images is meant.

Sources: the OCI image specification (image-layout.md, image-index.md, manifest.md), and what `docker save` writes.
Nothing is believed: every document that is read has a bound, and the digest that it was asked for by.
"""

import hashlib
import os
import stat
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple, TypeVar

import msgspec

from banger.model.errors import Invalid, Unsupported
from banger.model.sizes import show_size
from banger.model.text import harmless

MAX_LAYERS = 256
_MAX_DOCUMENT = 4 * 1024 * 1024
_MAX_MEMBERS = 20_000
_MAX_DEPTH = 3
_DIGEST = "sha256:"
_INDEXES = ("application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json")
_NAMES = ("org.opencontainers.image.ref.name", "io.containerd.image.name")
_DAMAGED = "copy the archive again; it was damaged, or is not what it claims to be"
T = TypeVar("T")


class Platform(msgspec.Struct):
    architecture: str = ""
    os: str = ""


class Descriptor(msgspec.Struct, rename={"media_type": "mediaType"}):
    digest: str
    size: int
    media_type: str = ""
    platform: Platform | None = None
    annotations: dict[str, str] | None = None

    @property
    def names(self) -> list[str]:
        found = self.annotations or {}
        return [harmless(found[key]) for key in _NAMES if found.get(key)]


class Index(msgspec.Struct):
    manifests: list[Descriptor]


class Manifest(msgspec.Struct):
    config: Descriptor
    layers: list[Descriptor]


class Saved(msgspec.Struct, rename="pascal"):
    """One entry of a docker archive's manifest.json."""

    config: str
    layers: list[str]
    repo_tags: list[str] | None = None


class Config(msgspec.Struct, rename="pascal"):
    """What an image wants of whoever runs it."""

    env: list[str] | None = None
    working_dir: str = ""
    user: str = ""
    entrypoint: list[str] | None = None
    cmd: list[str] | None = None
    exposed_ports: dict[str, msgspec.Raw] | None = None
    volumes: dict[str, msgspec.Raw] | None = None
    labels: dict[str, str] | None = None


class Rootfs(msgspec.Struct):
    diff_ids: list[str]


class ImageConfig(msgspec.Struct):
    rootfs: Rootfs
    architecture: str = ""
    os: str = ""
    config: Config | None = None


class Chosen(NamedTuple):
    """The image that is meant. `at` is its place among those of a docker archive; `digest` its manifest's, or its
    config's in a docker archive, which has no other.
    """

    name: str
    digest: str
    at: int = 0
    descriptor: Descriptor | None = None


def damaged(why: str) -> Invalid:
    return Invalid(f"the image cannot be used: {why}", hint=_DAMAGED)


def decode(content: bytes, kind: type[T], what: str) -> T:
    """A document of this shape. Raises `Invalid`."""
    try:
        return msgspec.json.decode(content, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise damaged(f"its {what} makes no sense: {harmless(str(error))}") from error


def hex_of(digest: str) -> str:
    """The hexadecimal part of a digest; nothing else is ever part of a path. Raises `Invalid`."""
    name = digest.removeprefix(_DIGEST)
    if not digest.startswith(_DIGEST) or len(name) != 64 or not set(name) <= set("0123456789abcdef"):
        raise damaged(f"{harmless(digest)!r} is no SHA-256 digest")
    return name


def read_document(path: Path) -> bytes:
    """A small regular file. Raises `Invalid`."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise damaged(f"{path.name} cannot be read: {error.strerror}") from error
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise damaged(f"{path.name} is no regular file")
        content = file.read(_MAX_DOCUMENT + 1)
    if len(content) > _MAX_DOCUMENT:
        raise damaged(f"{path.name} has more than {show_size(_MAX_DOCUMENT)}")
    return content


def read_blob(blobs: Path, digest: str) -> bytes:
    """A small blob, which has this digest. Raises `Invalid`."""
    name = hex_of(digest)
    content = read_document(blobs / "sha256" / name)
    if hashlib.sha256(content).hexdigest() != name:
        raise damaged(f"the content of {digest[:19]}... has another digest")
    return content


def choose(layout: Path, blobs: Path, tag: str, limit: int) -> Chosen:
    """The image of a layout with this tag or digest, or the only one; for Linux on x86_64 where there are several.

    Raises `Invalid` (no such image, too many, damage, more than `limit` bytes), `Unsupported` (another platform).
    """
    index = decode(read_document(layout / "index.json"), Index, "index.json")
    found = [entry for entry in index.manifests if not tag or _is(tag, [*entry.names, entry.digest])]
    names = [(entry.names or [entry.digest])[0] for entry in index.manifests]
    entry = found[_only(len(found), tag, names)]
    manifest = _resolve(blobs, entry, 0)
    _check(decode(read_blob(blobs, manifest.digest), Manifest, "manifest"), blobs, limit)
    return Chosen((entry.names or [""])[0], manifest.digest, descriptor=manifest)


def _only(count: int, tag: str, names: Sequence[str]) -> int:
    if count == 1:
        return 0
    listed = ", ".join(names[:10]) or "none"
    if not count:
        what = f"there is no image {tag} in it" if tag else "there is no image in it"
        raise Invalid(what, hint=f"the images in it: {listed}")
    raise Invalid(f"there are {count} such images in it", hint=f"choose one with --tag: {listed}")


def _is(tag: str, names: Sequence[str]) -> bool:
    return any(tag == name or name.endswith((f"/{tag}", f":{tag}")) for name in names)


def _resolve(blobs: Path, entry: Descriptor, depth: int) -> Descriptor:
    """The manifest that a descriptor leads to, through the indexes of images for several platforms."""
    if entry.media_type not in _INDEXES:
        return entry
    if depth == _MAX_DEPTH:
        raise damaged("its indexes lead to more indexes")
    inner = decode(read_blob(blobs, entry.digest), Index, "index").manifests
    for candidate in inner:
        if (platform := candidate.platform) is None or (platform.os, platform.architecture) == ("linux", "amd64"):
            return _resolve(blobs, candidate, depth + 1)
    there = ", ".join(sorted({f"{one.platform.os}/{one.platform.architecture}" for one in inner if one.platform}))
    raise Unsupported(
        f"the image is not for linux/amd64 but for {harmless(there) or 'nothing'}", hint="pull it for linux/amd64"
    )


def _check(manifest: Manifest, blobs: Path, limit: int) -> None:
    if len(manifest.layers) > MAX_LAYERS:
        raise damaged(f"it has {len(manifest.layers)} layers, and {MAX_LAYERS} are enough")
    claimed = sum(max(one.size, 0) for one in (manifest.config, *manifest.layers))
    if claimed > limit:
        raise Invalid(
            f"its layers are said to have {show_size(claimed)}, and {show_size(limit)} may be imported",
            hint="give a larger --size if that is right",
        )
    for one in (manifest.config, *manifest.layers):
        path = blobs / "sha256" / hex_of(one.digest)
        try:
            found = path.lstat()
        except OSError as error:
            raise damaged(f"{one.digest[:19]}... is missing") from error
        # of a link to a device there would be no end
        if not stat.S_ISREG(found.st_mode) or found.st_size != one.size:
            raise damaged(f"{one.digest[:19]}... is no file of {one.size} bytes")


def choose_saved(archive: Path, tag: str) -> Chosen:
    """The image of a docker archive with this tag, or the only one. Raises `Invalid`."""
    with archive.open("rb") as file:
        names = dict(members(file))
        if "manifest.json" not in names:
            raise damaged("there is no manifest.json in it")
        saved = decode(_content(file, *names["manifest.json"]), list[Saved], "manifest.json")
    found = [at for at, one in enumerate(saved) if not tag or _is(tag, one.repo_tags or [])]
    listed = [harmless((one.repo_tags or [one.config])[0]) for one in saved]
    at = found[_only(len(found), tag, listed)]
    one = saved[at]
    if len(one.layers) > MAX_LAYERS:
        raise damaged(f"it has {len(one.layers)} layers, and {MAX_LAYERS} are enough")
    digest = f"{_DIGEST}{one.config.removesuffix('.json').rpartition('/')[2]}"
    if one.config not in names:
        raise damaged("a configuration that its manifest.json names is missing")
    with archive.open("rb") as file:
        config = _content(file, *names[one.config])
    if hashlib.sha256(config).hexdigest() != hex_of(digest):
        raise damaged("the content of its configuration has another digest than its name says")
    return Chosen(harmless((one.repo_tags or [""])[0]), digest, at)


def members(file: BinaryIO) -> Iterator[tuple[str, tuple[int, int]]]:
    """Name, and offset and size of the content, of each regular file in a plain tar. Raises `Invalid`."""
    file.seek(0)
    seen: set[str] = set()
    for _ in range(_MAX_MEMBERS):
        block = file.read(tarfile.BLOCKSIZE)
        if not block.strip(b"\0"):
            return
        try:
            header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            raise damaged(f"the archive is damaged: {error}") from error
        if not 0 <= header.size < 1 << 62:
            raise damaged("the archive has an entry of impossible size")
        at = file.tell()
        if header.isreg():
            name = header.name.removeprefix("./")
            if name in seen:
                raise damaged(f"{harmless(name)} is in the archive twice")
            seen.add(name)
            yield name, (at, header.size)
        file.seek(at + -(-header.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE)
    raise damaged(f"the archive has more than {_MAX_MEMBERS} files")


def _content(file: BinaryIO, at: int, size: int) -> bytes:
    if size > _MAX_DOCUMENT:
        raise damaged(f"a document in it has more than {show_size(_MAX_DOCUMENT)}")
    file.seek(at)
    return file.read(size)
