"""Archives of small images, made well or badly; and reading them."""

import io
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import msgspec
import zstandard

from banger.images.archive_manifest import MANIFEST, Manifest, describe, encode
from banger.images.archive_reader import ArchiveReader, Source
from banger.images.archive_writer import opened_parts, pack
from banger.model.image import WORK_SEED, Image, ImagePart
from banger.system.files import sha256_of
from banger.system.sparse_tar import BLOCK, END, Member, header
from banger.system.stoppable import Stop

LARGEST = 1 << 36
Content = Mapping[int, bytes]  # by offset; the rest is holes


def sparse(path: Path, size: int, content: Content) -> Path:
    with path.open("wb") as file:
        file.truncate(size)
        for offset, data in content.items():
            file.seek(offset)
            file.write(data)
    return path


def parts_in(directory: Path) -> dict[str, Path]:
    """Files as an image has them, though nothing in them is one; small, and the root is mostly holes."""
    directory.mkdir()
    return {
        "kernel": sparse(directory / "kernel", 3000, {0: b"vmlinux " * 375}),
        "initramfs": sparse(directory / "initramfs", 512, {0: b"i" * 512}),
        WORK_SEED: sparse(directory / "seed", 1 << 18, {}),
        "root": sparse(directory / "root", 2 << 20, {0: b"r" * 9000, 1 << 19: b"ext4" * 2048, 1 << 20: b"\1" * 4096}),
    }


def image_of(files: Mapping[str, Path], **changes: Any) -> Image:
    parts = {role: ImagePart(path.name, path.stat().st_size, sha256_of(path)) for role, path in files.items()}
    image = Image(
        name="tiny", distro="debian", release="12", kernel_release="6", boot_args="root=/dev/vda rootfstype=ext4",
        parts=parts, packages=1, created_at="2026-01-02T03:04:05+00:00", origin="test", needs_acpi=True,
    )  # fmt: skip
    return msgspec.structs.replace(image, **changes)


def packed(files: Mapping[str, Path], image: Image | None = None) -> bytes:
    """What `image export` writes."""
    out, stop = io.BytesIO(), Stop()
    try:
        with opened_parts(image or image_of(files), files) as (manifest, parts):
            pack(manifest, parts, out, stop, lambda done: None)
    finally:
        stop.close()
    return out.getvalue()


def manifest_of(files: Mapping[str, Path]) -> Manifest:
    with opened_parts(image_of(files), files) as (manifest, _):
        return manifest


def compressed(tar: bytes) -> bytes:
    return zstandard.ZstdCompressor(write_checksum=True, level=1).compress(tar)


def plain(name: str, content: bytes) -> bytes:
    """One file in a tar archive."""
    return header(Member(name, len(content), [(0, len(content))]), 0) + content + bytes(-len(content) % BLOCK)


def beginning(manifest: Manifest) -> bytes:
    return plain(MANIFEST, encode(manifest))


def simple(parts: Mapping[str, bytes]) -> Manifest:
    """The manifest of parts without holes, by role."""
    import hashlib

    told = {role: ImagePart(role, len(data), hashlib.sha256(data).hexdigest()) for role, data in parts.items()}
    image = msgspec.structs.replace(image_of({}), parts=told)
    return describe(image, {role: len(data) for role, data in parts.items()})


SMALL = {"kernel": b"k" * 600, "initramfs": b"i" * 512, "root": b"r" * 5000}
FILES = {"kernel": "vmlinux", "initramfs": "initramfs.cpio", "root": "root.ext4"}


def small(*others: bytes, without: Collection[str] = ()) -> bytes:
    """A tar archive of three small parts, with these members before them, and not yet its end."""
    members = [plain(FILES[role], data) for role, data in SMALL.items() if role not in without]
    return beginning(simple(SMALL)) + b"".join([*others, *members])


def read(archive: bytes | Path, directory: Path | None = None, kept: Collection[str] = ()) -> Manifest:
    """Read an archive whole."""
    if isinstance(archive, Path):
        descriptor = os.open(archive, os.O_RDONLY)
    else:
        descriptor = os.memfd_create("archive")
        os.write(descriptor, archive)
        os.lseek(descriptor, 0, os.SEEK_SET)
    stop = Stop()
    try:
        reader = ArchiveReader(Source(descriptor))
        manifest, _ = reader.manifest(stop, largest=LARGEST)
        reader.parts(stop, manifest, directory, kept)
    finally:
        stop.close()
        os.close(descriptor)
    return manifest


def whole(tar: bytes) -> bytes:
    return compressed(tar + END)
