"""Tar archives in memory: packed and unpacked by us, or made header by header."""

import io
import os
import tarfile
from pathlib import Path
from typing import Literal

from banger.guest import tree

MIB = 1 << 20
END = bytes(1024)


def packed(path: Path | str, *, contents: bool = False) -> tuple[bytes, tree.Report]:
    out = io.BytesIO()
    report = tree.pack(os.fsencode(path), out.write, contents=contents)
    return out.getvalue(), report


def unpacked(archive: bytes, target: Path | str, *, contents: bool = False, **options: object) -> tree.Report:
    read = io.BytesIO(archive).read
    return tree.unpack(read, os.fsencode(target), contents=contents, **options)  # type: ignore[arg-type]


Entry = tuple[str, bytes, dict[str, object]]


def archive_of(*entries: Entry, form: Literal[0, 1, 2] = 2) -> bytes:
    """An archive of (name, data, fields of TarInfo), in ustar (0), GNU (1) or pax form (2)."""
    blocks = b""
    for name, data, fields in entries:
        info = tarfile.TarInfo(name)
        info.size = len(data)
        for field, value in fields.items():
            setattr(info, field, value)
        blocks += info.tobuf(form, "utf-8", "surrogateescape") + data + bytes(-len(data) % 512)
    return blocks + END


def made(kind: bytes, **fields: object) -> dict[str, object]:
    return {"type": kind, **fields}
