"""The layers of an image before they are unpacked: how much they hold, and whether they hold what they may.

Whoever unpacks them afterwards reads the same bytes: they lie in a layout of ours by then.
"""

import gzip
import hashlib
import io
import json
import os
import tarfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from banger.images.oci_layout import (
    ImageConfig,
    Index,
    Manifest,
    damaged,
    decode,
    hex_of,
    read_blob,
    read_document,
)
from banger.model.errors import Invalid, Unsupported
from banger.model.sizes import show_size
from banger.model.text import harmless

MAX_ENTRIES = 2_000_000
_PIECE = 1024 * 1024  # and what bounds a header, which is read whole
_BLOCK = 4096
_PLAIN = "application/vnd.oci.image.layer.v1.tar"
_NODES = (tarfile.CHRTYPE, tarfile.BLKTYPE)
_KINDS = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE)
_DAMAGE = (tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error, ValueError, OverflowError)

Told = Callable[[int], None]


class Surveyed(NamedTuple):
    """What all layers hold together: bytes on a disk, entries, and names of device nodes, which were taken out."""

    bytes: int
    entries: int
    nodes: list[str]


class _Budget:
    """What the layers of an image may unpack to, all together."""

    def __init__(self, limit: int, told: Told) -> None:
        self.limit = limit
        self.unpacked = self.bytes = self.entries = 0
        self.told = told

    def unpack(self, count: int) -> None:
        self.unpacked += count
        if self.unpacked > 2 * self.limit:
            raise self._too_large(2 * self.limit)
        self.told(self.unpacked)

    def hold(self, size: int) -> None:
        self.entries += 1
        self.bytes += -(-size // _BLOCK) * _BLOCK
        if self.bytes > self.limit:
            raise self._too_large(self.limit)
        if self.entries > MAX_ENTRIES:
            raise Invalid(f"the image has more than {MAX_ENTRIES} files")

    def _too_large(self, limit: int) -> Invalid:
        return Invalid(
            f"the image unpacks to more than {show_size(limit)}", hint="give a larger --size if that is right"
        )


class _Stream(io.BufferedIOBase):
    """The unpacked bytes of a layer, once from beginning to end, counted and digested."""

    def __init__(self, file: "BinaryIO | gzip.GzipFile", budget: _Budget) -> None:
        self._file = file
        self._budget = budget
        self._at = 0
        self.digest = hashlib.sha256()

    def readable(self) -> bool:
        return True

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or not 0 <= size <= _PIECE:
            raise damaged("a layer has a header of impossible size")
        piece = self._file.read(size)
        self._at += len(piece)
        self._budget.unpack(len(piece))
        self.digest.update(piece)
        return piece

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        if offset < self._at:
            raise damaged("a layer has an entry of impossible size")
        while self._at < offset and self.read(min(_PIECE, offset - self._at)):
            pass
        return self._at

    def drain(self) -> None:
        while self.read(_PIECE):
            pass


def _open(layout: Path, digest: str, media_type: str) -> "BinaryIO | gzip.GzipFile":
    path = layout / "blobs/sha256" / hex_of(digest)
    if media_type.endswith("+gzip"):
        return gzip.open(path)
    if media_type != _PLAIN:
        raise Unsupported(f"a layer is of the kind {harmless(media_type)}", hint="use layers of tar or tar+gzip")
    return path.open("rb")


def survey(layout: Path, limit: int, told: Told) -> Surveyed:
    """Look through the layers of a layout's only image, and take device nodes out of them.

    `told` hears how many bytes are unpacked, and may raise. Raises `Invalid` for what is damaged, has another digest
    than the configuration says, would not fit in `limit` bytes, or leads out of the tree; `Unsupported`.
    """
    manifest, config = read_image(layout)
    if len(config.rootfs.diff_ids) != len(manifest.layers):
        raise damaged("its configuration is for another number of layers")
    budget = _Budget(limit, told)
    nodes: list[str] = []
    without: dict[int, list[tuple[int, int]]] = {}
    for at, (one, wanted) in enumerate(zip(manifest.layers, config.rootfs.diff_ids, strict=True)):
        try:
            with _open(layout, one.digest, one.media_type) as file:
                stream = _Stream(file, budget)
                ranges = _look(stream, budget, nodes)
                stream.drain()
        except _DAMAGE as error:
            raise damaged(f"layer {at + 1} is damaged: {harmless(str(error))}") from error
        if stream.digest.hexdigest() != hex_of(wanted):
            raise damaged(f"the content of layer {at + 1} has another digest than its configuration says")
        if ranges:
            without[at] = ranges
    if without:
        _rewrite(layout, manifest, without)
    return Surveyed(budget.bytes, budget.entries, nodes)


def _look(stream: _Stream, budget: _Budget, nodes: list[str]) -> list[tuple[int, int]]:
    """Check every entry; where the headers of device nodes begin and end."""
    ranges = []
    with tarfile.open(fileobj=stream, mode="r:", encoding="utf-8", errors="surrogateescape") as archive:
        while (entry := archive.next()) is not None:
            vars(archive)["members"].clear()  # they are not needed again, and may be many
            _check(entry)
            budget.hold(entry.size if entry.isreg() else 0)
            if entry.type in _NODES:
                ranges.append((entry.offset, entry.offset_data))
                nodes.append(harmless(entry.name))
    return ranges


def _check(entry: tarfile.TarInfo) -> None:
    name = harmless(entry.name)
    if ".." in entry.name.split("/") or (entry.islnk() and ".." in entry.linkname.split("/")):
        raise Invalid(f"the image has a file that leads out of it: {name}")
    if entry.issparse() or any(key.startswith("GNU.sparse") for key in entry.pax_headers):
        raise Unsupported(f"the image has a sparse file: {name}", hint="no tool that makes images writes those")
    if entry.type not in (*_KINDS, *_NODES):
        raise Unsupported(f"the image has an entry of an unknown kind: {name}")


def read_image(layout: Path) -> tuple[Manifest, ImageConfig]:
    """Manifest and configuration of the only image in a layout that the tool has written. Raises `Invalid`."""
    index = decode(read_document(layout / "index.json"), Index, "index.json")
    blobs = layout / "blobs"
    manifest = decode(read_blob(blobs, index.manifests[0].digest), Manifest, "manifest")
    return manifest, decode(read_blob(blobs, manifest.config.digest), ImageConfig, "configuration")


def _rewrite(layout: Path, manifest: Manifest, without: dict[int, list[tuple[int, int]]]) -> None:
    """The same image, less these ranges of some layers: nothing but headers of entries, so all else stays as it is."""
    blobs = layout / "blobs"
    index = json.loads(read_document(layout / "index.json"))
    document = json.loads(read_blob(blobs, index["manifests"][0]["digest"]))
    config = json.loads(read_blob(blobs, manifest.config.digest))
    for at, ranges in without.items():
        one = manifest.layers[at]
        with _open(layout, one.digest, one.media_type) as file:
            digest, size = _copy(file, ranges, blobs / "sha256")
        document["layers"][at] = {"mediaType": _PLAIN, "digest": digest, "size": size}
        config["rootfs"]["diff_ids"][at] = digest
    document["config"] |= _put(blobs, config)
    index["manifests"][0] |= _put(blobs, document)
    (layout / "index.json").write_text(json.dumps(index))


def _put(blobs: Path, document: dict[str, Any]) -> dict[str, Any]:
    content = json.dumps(document).encode()
    name = hashlib.sha256(content).hexdigest()
    (blobs / "sha256" / name).write_bytes(content)
    return {"digest": f"sha256:{name}", "size": len(content)}


def _copy(file: "BinaryIO | gzip.GzipFile", ranges: Sequence[tuple[int, int]], directory: Path) -> tuple[str, int]:
    """Copy a layer without these ranges; the digest and size of the copy."""
    digest, size, at = hashlib.sha256(), 0, 0
    target = directory / "without-nodes"
    left = [*ranges]
    with target.open("xb") as copy:
        while True:
            if left and at == left[0][0]:
                start, end = left.pop(0)
                at += len(file.read(end - start))
                continue
            piece = file.read(min(_PIECE, left[0][0] - at) if left else _PIECE)
            if not piece:
                break
            at, size = at + len(piece), size + len(piece)
            digest.update(piece)
            copy.write(piece)
    target.rename(directory / digest.hexdigest())
    return f"sha256:{digest.hexdigest()}", size
