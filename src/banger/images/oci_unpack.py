"""An OCI layout or a docker archive becomes a tree of files: by skopeo, which verifies digests, and by umoci, which
knows layers and whiteouts. Both are kept from everything else meanwhile; see `Sandbox`.
"""

import asyncio
import gzip
import os
import re
import shutil
import zlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import msgspec

from banger.images.archive_kind import kind_of
from banger.images.oci_layers import Surveyed, read_image, survey
from banger.images.oci_layout import Chosen, ImageConfig, choose, choose_saved, damaged, members
from banger.images.sandbox import FILES, Sandbox, check_room, run_tool, while_there_is_room
from banger.model.errors import CommandFailed, HostRequirement, Invalid, Unsupported
from banger.model.progress import Progress
from banger.model.sizes import MIB
from banger.model.text import harmless
from banger.system.files import remove_tree
from banger.system.process import find_program
from banger.system.stoppable import Stop, run_stoppable

Room = Callable[[int], AbstractContextManager[None]]
PROGRAMS = {"skopeo": "skopeo", "umoci": "umoci", "bwrap": "bubblewrap"}
_READ_S, _COPY_S, _UNPACK_S = 1800.0, 3600.0, 3600.0
_PIECE, _SHOWN = MIB, 8 * MIB
_GZIP = b"\x1f\x8b"
_SPARE = 64 * MIB  # for documents, and what surrounds files in a tar
_SAID = re.compile(r'msg="(.*)"$')
_CROSS = "\u2a2f "  # before umoci's last words
_DIGESTS = ("Digest did not match", "does not match expected", "mismatch")


class Unpacked(NamedTuple):
    """An image as a tree. `held` is what the tree has, as far as its layers say."""

    tree: Path
    chosen: Chosen
    config: ImageConfig
    held: Surveyed


def check_tools() -> None:
    """Raise `HostRequirement`, with the line that installs them, when tools are missing."""
    missing = []
    for program, package in PROGRAMS.items():
        try:
            find_program(program, package=package)
        except HostRequirement:
            missing.append(package)
    if missing:
        raise HostRequirement(
            f"importing OCI images needs {' and '.join(missing)}",
            hint=f"apt-get install --no-install-recommends {' '.join(missing)}",
        )


@dataclass(frozen=True)
class _Source:
    """What skopeo is given: its words for the image, and the files that it finds under these paths."""

    words: str
    reads: dict[str, Path]
    bytes: int


class Unpacker:
    """One import: what lies at `path` becomes files below `work`, which is the caller's to remove.

    `limit` is how many bytes the tree may have, `tag` which image is meant.
    """

    def __init__(self, path: Path, work: Path, *, tag: str, limit: int, room: Room, progress: Progress) -> None:
        self._path = path
        self._work = work
        self._tag = tag
        self._limit = limit
        self._room = room
        self._progress = progress
        self._mine = work / "oci"  # all that the tools may write

    async def run(self) -> Unpacked:
        """Raises `Invalid` (damage, a wrong digest, too much, several images), `Unsupported`, `NotFound`,
        `HostRequirement`, `Timeout`.
        """
        self._mine.mkdir(mode=0o700)
        progress = self._progress
        async with progress.stage("read the archive", deadline_s=_READ_S):
            with self._room(self._path.stat().st_size if self._path.is_file() else 0):
                chosen, source = await run_stoppable(self._look)
        async with progress.stage("verify the digests", deadline_s=_COPY_S):
            with self._room(source.bytes):
                await self._copy(source)
            for path in (self._work / "archive.tar", self._work / "extracted"):
                await remove_tree(path)
            config = self._config()
        async with progress.stage("look into the layers", deadline_s=_READ_S):
            held = await self._survey()
        async with progress.stage("unpack the layers", deadline_s=_UNPACK_S):
            with self._room(held.bytes):
                await self._unpack()
        return Unpacked(self._mine / "tree", chosen, config, held)

    def _look(self, stop: Stop) -> tuple[Chosen, _Source]:
        path = self._path
        if path.is_file() and _magic(path) == _GZIP:
            path = self._unzip(stop)
        if (kind := kind_of(path)) == "banger":
            raise Invalid(f"{path} is an archive of banger's", hint="import it without --tag and --kernel-from")
        if kind == "docker":
            if _magic(path) == _GZIP:
                raise Invalid(f"{path} is compressed twice")
            chosen, size = choose_saved(path, self._tag), path.stat().st_size
            return chosen, _Source(f"docker-archive:/source:@{chosen.at}", {"/source": path}, size)
        if path.is_dir():
            return self._staged(path, path / "blobs")
        self._extract(path, self._work / "extracted", stop)
        return self._staged(self._work / "extracted", self._work / "extracted/blobs")

    def _staged(self, layout: Path, blobs: Path) -> tuple[Chosen, _Source]:
        """A layout in which there is only the image that was chosen, and whose manifest is as its digest says."""
        chosen = choose(layout, blobs, self._tag, self._limit)
        staged = self._work / "source"
        (staged / "blobs").mkdir(parents=True)
        index = {"schemaVersion": 2, "manifests": [chosen.descriptor]}
        (staged / "index.json").write_bytes(msgspec.json.encode(index))
        (staged / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
        size = sum(path.stat().st_size for path in (blobs / "sha256").iterdir() if path.is_file())
        return chosen, _Source("oci:/source", {"/source": staged, "/source/blobs": blobs}, min(size, self._limit))

    def _unzip(self, stop: Stop) -> Path:
        """The archive without its compression."""
        target, size = self._work / "archive.tar", 0
        try:
            with gzip.open(self._path) as packed, target.open("xb") as plain:
                while piece := packed.read(_PIECE):
                    stop.check()
                    check_room(self._work)
                    size += len(piece)
                    if size > self._limit + _SPARE:
                        raise Invalid(f"{self._path} unpacks to more than may be imported", hint="give a larger --size")
                    plain.write(piece)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise damaged(f"its compression is damaged: {error}") from error
        return target

    def _extract(self, archive: Path, target: Path, stop: Stop) -> None:
        """Take a layout's files out of a tar, and nothing else."""
        (target / "blobs/sha256").mkdir(parents=True)
        with archive.open("rb") as file:
            for name, (at, size) in list(members(file)):
                if name != "index.json" and not re.fullmatch("blobs/sha256/[0-9a-f]{64}", name):
                    continue
                file.seek(at)
                with (target / name).open("xb") as copy:
                    while size and (piece := file.read(min(size, _PIECE))):
                        stop.check()
                        copy.write(piece)
                        size -= len(piece)
                if size:
                    raise damaged("the archive ends too early")

    async def _copy(self, source: _Source) -> None:
        words = ["--insecure-policy", "--override-os", "linux", "--override-arch", "amd64", "--tmpdir", "/own"]
        words += ["copy", "--quiet", "--remove-signatures", "--format", "oci"]
        words += ["--dest-compress-format", "gzip", "--dest-compress-level", "1"]
        await self._tool("skopeo", [*words, source.words, "oci:/own/layout:image"], ["DAC_OVERRIDE"], source.reads)

    def _config(self) -> ImageConfig:
        config = read_image(self._mine / "layout")[1]
        if (config.os or "linux", config.architecture or "amd64") != ("linux", "amd64"):
            platform = harmless(f"{config.os}/{config.architecture}")
            raise Unsupported(f"the image is for {platform}", hint="banger's machines are linux/amd64")
        return config

    async def _survey(self) -> Surveyed:
        def work(stop: Stop) -> Surveyed:
            return survey(self._mine / "layout", self._limit, lambda done: told(done, stop))

        loop, shown = asyncio.get_running_loop(), 0

        def told(done: int, stop: Stop) -> None:
            nonlocal shown
            stop.check()
            if done - shown >= _SHOWN:
                shown = done
                loop.call_soon_threadsafe(self._progress.progress, done, None, "bytes")

        held = await run_stoppable(work)
        if held.nodes:
            names = ", ".join(held.nodes[:5]) + (", ..." if len(held.nodes) > 5 else "")
            self._progress.note(f"left out {len(held.nodes)} device nodes, which the kernel makes itself: {names}")
        return held

    async def _unpack(self) -> None:
        words = ["raw", "unpack", "--image", "/own/layout:image", "/own/tree"]
        await self._tool("umoci", words, FILES, {})
        (self._mine / "tree").chmod(0o755)
        shutil.rmtree(self._mine / "layout")

    async def _tool(self, name: str, words: Sequence[str], capabilities: Sequence[str], reads: dict[str, Path]) -> None:
        sandbox = Sandbox(
            reads=reads,
            writes={"/own": self._mine},
            capabilities=capabilities,
            largest_file=self._limit + _SPARE,
        )
        running = run_tool(sandbox, name, words, package=PROGRAMS[name], timeout=_COPY_S)
        try:
            await while_there_is_room(self._mine, running)
        except CommandFailed as error:
            raise _explained(name, error) from error


def _magic(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(len(_GZIP))


def _explained(name: str, error: CommandFailed) -> Invalid | HostRequirement:
    """What the tool's last words mean. Its argv helps nobody: what it was about is gone."""
    lines = [line.strip() for line in str(error.details.get("stderr", "")).splitlines()] or [error.message]
    found = _SAID.search(lines[-1])
    said = harmless((found[1] if found else lines[-1]).removeprefix(_CROSS))
    if os.strerror(28).lower() in said.lower():
        return HostRequirement(f"the disk is full: {said}", hint="`banger capacity` shows what takes the room")
    if any(words in said for words in _DIGESTS):
        return damaged(f"its content has another digest than it should have: {said}")
    return damaged(f"{name} says: {said}")
