"""Packing an image into one file: a tar archive of plain files with holes, compressed by zstd, as they are read."""

import io
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path
from typing import NamedTuple, Protocol

import zstandard

from banger.images.archive_manifest import MANIFEST, Manifest, describe, encode
from banger.model.errors import Invalid
from banger.model.image import Image
from banger.system.files import SparseDigest, data_runs
from banger.system.sparse_tar import BLOCK, END, RUNS_MAX, Member, Runs, header
from banger.system.stoppable import Stop

_LEVEL = 3  # with a window of 2 MiB; one of 8 makes archives smaller by 1 %, and wants 200 MiB of memory instead of 60
_PIECE = 1024 * 1024


class Output(Protocol):
    def write(self, data: bytes, /) -> int: ...


class Opened(NamedTuple):
    """A part that is being packed: its open file, and where in it is data."""

    file: io.FileIO
    runs: Runs


@contextmanager
def opened_parts(image: Image, files: Mapping[str, Path]) -> Iterator[tuple[Manifest, Mapping[str, Opened]]]:
    """The files of an image's parts, by role, open; and the manifest of their archive. Raises `Invalid`."""
    with ExitStack() as stack:
        parts: dict[str, Opened] = {}
        for role, path in files.items():
            file = stack.enter_context(path.open("rb", buffering=0))
            if (size := file.seek(0, os.SEEK_END)) != image.parts[role].bytes:
                raise _changed(image, path)
            parts[role] = Opened(file, _runs(file, size))
        stored = {role: sum(length for _, length in part.runs) for role, part in parts.items()}
        yield describe(image, stored), parts


def _runs(file: io.FileIO, size: int) -> Runs:
    """Offset and length of each run of data; the smallest holes count as data where there are too many."""
    least = BLOCK
    while True:
        runs: Runs = []
        for start, end in data_runs(file, size):
            if runs and start - sum(runs[-1]) < least:
                runs[-1] = (runs[-1][0], end - runs[-1][0])
            else:
                runs.append((start, end - start))
        if len(runs) < RUNS_MAX:
            return runs
        least *= 8


def pack(manifest: Manifest, parts: Mapping[str, Opened], out: Output, stop: Stop, told: Callable[[int], None]) -> None:
    """Write the archive. `told` hears how many bytes of data are packed.

    Raises `Invalid` when a file is not what the image says, `Cancelled`, and what `out` raises; the archive is not
    complete then.
    """
    parameters = zstandard.ZstdCompressionParameters.from_level(_LEVEL, threads=-1, write_checksum=True)
    modified = int(datetime.fromisoformat(manifest.image.created_at).timestamp())
    packed = zstandard.ZstdCompressor(compression_params=parameters).stream_writer(out, closefd=False)  # type: ignore[arg-type]
    document = encode(manifest)
    packed.write(header(Member(MANIFEST, len(document), [(0, len(document))]), modified))
    packed.write(document + bytes(-len(document) % BLOCK))
    done = 0
    for part in manifest.parts:
        opened = parts[part.role]
        packed.write(header(Member(part.file, part.bytes, opened.runs), modified))
        digest = SparseDigest(stop.check)
        for offset, piece in _pieces(opened):
            stop.check()
            digest.add(offset, piece)
            packed.write(piece)
            done += len(piece)
            told(done)
        if digest.finish(part.bytes) != part.sha256:
            raise _changed(manifest.image, Path(opened.file.name))
        packed.write(bytes(-part.stored % BLOCK))
    packed.write(END)
    packed.close()  # type: ignore[no-untyped-call]  # and only now: what is cut off shall not look whole


def _pieces(part: Opened) -> Iterator[tuple[int, bytes]]:
    """A file that has become shorter meanwhile ends with zeros, and its digest tells."""
    for offset, length in part.runs:
        end = offset + length
        while offset < end:
            count = min(_PIECE, end - offset)
            piece = os.pread(part.file.fileno(), count, offset) or bytes(count)
            yield offset, piece
            offset += len(piece)


def _changed(image: Image, path: Path) -> Invalid:
    return Invalid(
        f"{path} is not what it was when the image {image.name} was made",
        hint=f"`banger image verify {image.name}` tells all that is wrong",
    )
