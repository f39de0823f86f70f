"""What kind of file an image comes in: told by its first bytes, or by the names in a tar archive."""

import os
import tarfile
from pathlib import Path
from typing import BinaryIO, Literal

from banger.model.errors import Invalid, NotFound

Kind = Literal["banger", "oci", "docker"]
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_GZIP_MAGIC = b"\x1f\x8b"
_HEADERS_MAX = 10_000
_HINT = "import takes what `banger image export` wrote, an OCI layout, or what `docker save` wrote"


def kind_of(path: Path) -> Kind:
    """What `image import` was given: banger's own archive, an OCI layout (a directory, or a tar of one), or a docker
    archive (a gzipped one is not looked into). Raises `NotFound`, `Invalid`.

    An archive that is both of the latter, as docker writes them today, is an OCI layout.
    """
    if path.is_dir():
        if (path / "oci-layout").is_file():
            return "oci"
        raise Invalid(f"the directory {path} has no oci-layout", hint=_HINT)
    if not path.exists():
        raise NotFound(f"there is no {path}", hint="name a file, or a directory with an OCI layout")
    if not path.is_file():
        raise Invalid(f"{path} is no file", hint=_HINT)
    with path.open("rb") as file:
        magic = file.read(len(ZSTD_MAGIC))
        if magic == ZSTD_MAGIC:
            return "banger"
        if magic.startswith(_GZIP_MAGIC):
            return "docker"
        file.seek(0)
        names = _names(file)
    if "oci-layout" in names:
        return "oci"
    if "manifest.json" in names:
        return "docker"
    raise Invalid(f"{path} is no archive of an image", hint=_HINT)


def _names(file: BinaryIO) -> set[str]:
    """The names in a tar archive, until both that matter are there; contents are passed over, unread."""
    names: set[str] = set()
    for _ in range(_HEADERS_MAX):
        block = file.read(tarfile.BLOCKSIZE)
        try:
            header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.HeaderError:  # the end, or damage, of which whoever reads it has more to say
            break
        if header.isreg():
            names.add(header.name.removeprefix("./"))
        if {"oci-layout", "manifest.json"} <= names or not 0 <= header.size < 1 << 62:
            break
        file.seek(-(-header.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE, os.SEEK_CUR)
    return names
