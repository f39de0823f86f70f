"""Moving images: each to one file, and from one."""

import asyncio
import errno
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

import msgspec

from banger.config import Settings
from banger.images import catalog
from banger.images.archive_kind import kind_of
from banger.images.archive_manifest import Manifest, imported
from banger.images.archive_parts import kept_parts, tidy, unpacking
from banger.images.archive_reader import ArchiveReader, Source
from banger.images.archive_target import check_target, file_target, stream_target, sweep_targets
from banger.images.archive_writer import opened_parts, pack
from banger.images.embedded_key import exchange_key
from banger.images.homes import ROOT_HOME, SEED_HOME
from banger.images.locks import image_in_use
from banger.jobs.operations import Job, Operations
from banger.model.errors import Conflict, HostRequirement, Invalid
from banger.model.image import WORK_SEED, Exported, ExportSpec, Image, ImagePart, ImportSpec, Verified
from banger.model.names import validate_name
from banger.model.operation import Operation
from banger.model.sizes import MIB, show_size
from banger.paths import ImagePaths, Paths
from banger.service.admission import Admission
from banger.service.bundle import RuntimeBundle
from banger.service.catalogue import image_target
from banger.storage.copies import copy_disk
from banger.system.ext4 import check_ext4, read_superblock
from banger.system.files import in_thread, make_read_only, sha256_of, sync_path
from banger.system.filesystems import filesystem_of
from banger.system.stoppable import Stop, run_stoppable

T = TypeVar("T")
MOVE_S, CHECK_S, KEYS_S, PUBLISH_S = 12 * 3600.0, 900.0, 3600.0, 300.0
_FILESYSTEMS = {"root": ROOT_HOME, WORK_SEED: SEED_HOME}  # and where in them root's home is


class Archives:
    """Exports and imports; `others` begins the import of an archive that is not banger's."""

    def __init__(
        self,
        paths: Paths,
        settings: Settings,
        operations: Operations,
        bundle: RuntimeBundle,
        admission: Admission,
        others: Callable[[ImportSpec], Operation],
    ) -> None:
        self._paths = paths
        self._largest = settings.import_max_mib * MIB
        self._operations = operations
        self._bundle = bundle
        self._admission = admission
        self._others = others

    def export_image(self, name: str, spec: ExportSpec) -> Operation:
        """Begin `image.export`. Raises `NotFound`, `Conflict` when the file is there, `Invalid`."""
        self._operations.check_free(image_target(name))
        image = catalog.find_image(self._paths, name)
        if not spec.stream:
            check_target(Path(spec.path), force=spec.force)
        return self._operations.begin("image.export", image_target(name), lambda job: self._export(job, image, spec))

    def import_image(self, spec: ImportSpec) -> Operation:
        """Begin `image.import`, of whatever kind of archive. Raises `NotFound`, `Invalid`, `Conflict`."""
        path = Path(spec.path)
        if not path.is_absolute():
            raise Invalid(f"{path} is not absolute")
        if spec.name is not None:
            self._check_free(spec.name)
        is_pipe = path.exists() and not (path.is_file() or path.is_dir())
        if not is_pipe and kind_of(path) != "banger":
            return self._others(spec)
        if spec.oci is not None:
            raise Invalid(f"{path} is an archive of banger's own", hint="leave out what is for OCI images only")
        return self._operations.begin("image.import", f"archive/{path}", lambda job: self._import(job, path, spec))

    async def sweep(self) -> None:
        """Remove what a killed daemon had half written; parts that were complete stay. At start only."""
        await in_thread(sweep_targets, self._paths.exports)
        for directory in self._paths.imports.glob("[!.]*/"):
            await in_thread(tidy, directory)

    async def _export(self, job: Job, image: Image, spec: ExportSpec) -> Exported:
        path = Path(spec.path)
        files = {role: catalog.part_path(self._paths, image, role) for role in image.parts}

        def work(stop: Stop, told: Callable[[int, int], None]) -> Exported:
            with opened_parts(image, files) as (manifest, parts):
                target = (
                    stream_target(path, stop)
                    if spec.stream
                    else file_target(path, spec.force, self._paths.exports, stop)
                )
                with target as out:
                    pack(manifest, parts, out, stop, lambda done: told(done, manifest.stored))
                return Exported(image.name, spec.path, out.count, manifest.stored)

        with image_in_use(files["root"], image.name):
            async with job.stage("pack", deadline_s=MOVE_S):
                return await _with_progress(job, work)

    async def _import(self, job: Job, path: Path, spec: ImportSpec) -> Image | Verified:
        async with _opened(path) as descriptor:
            reader = ArchiveReader(Source(descriptor))
            async with job.stage("manifest", deadline_s=MOVE_S):
                manifest, raw = await run_stoppable(lambda stop: reader.manifest(stop, largest=self._largest))
                job.note(f"the image {manifest.image.name}, {show_size(manifest.stored)} without holes")
            if spec.check:
                await self._unpack(job, reader, manifest, None)
                checked = {part.role: ["sha256"] for part in manifest.parts}
                return Verified(manifest.image.name, checked, manifest.image.seed_key)
            name = spec.name or manifest.image.name
            self._check_free(name)
            async with unpacking(self._paths, raw) as directory:
                try:
                    await self._unpack(job, reader, manifest, directory)
                    await self._check(job, manifest, directory)
                except asyncio.CancelledError:
                    if kept_parts(directory, manifest):
                        job.if_cancelled = "the parts that are complete are kept: importing it again goes on with them"
                    raise
                origin = f"{_told(path)} at {datetime.now(UTC).isoformat(timespec='seconds')}"
                return await self._make(job, imported(manifest, name, origin), directory)

    def _check_free(self, name: str) -> None:
        try:
            catalog.check_free(self._paths, validate_name(name, "image name"))
        except Conflict as error:
            raise Conflict(error.message, hint="give it another name: --name NEW") from error

    async def _unpack(self, job: Job, reader: ArchiveReader, manifest: Manifest, directory: Path | None) -> None:
        kept = kept_parts(directory, manifest) if directory is not None else set()
        if kept:
            job.note(f"complete since an import that was interrupted: {', '.join(sorted(kept))}")
        needed = sum(part.stored for part in manifest.parts if part.file not in kept) if directory is not None else 0
        if needed:
            self._check_cache(needed)

        def work(stop: Stop, told: Callable[[int, int], None]) -> None:
            reader.parts(stop, manifest, directory, kept, lambda done: told(done, manifest.stored))

        with self._admission.room(needed) if needed else nullcontext():
            async with job.stage("unpack" if directory is not None else "read", deadline_s=MOVE_S):
                await _with_progress(job, work)

    def _check_cache(self, needed: int) -> None:
        """The cache may lie on a filesystem of its own, where parts are before they are an image's."""
        imports = self._paths.imports
        if imports.stat().st_dev != self._paths.state.stat().st_dev and filesystem_of(imports).free < needed:
            raise HostRequirement(
                f"{show_size(needed)} are to be unpacked, and {show_size(filesystem_of(imports).free)} are free "
                f"at {imports}",
                hint="make room there, or let BANGER_CACHE_DIR name another directory",
            )

    async def _check(self, job: Job, manifest: Manifest, directory: Path) -> None:
        async with job.stage("check the filesystems", deadline_s=CHECK_S):
            for part in manifest.parts:
                if part.role in _FILESYSTEMS:
                    await check_ext4(directory / part.file)
                    if read_superblock(directory / part.file).needs_recovery:
                        # its guests would replay over what is written to it here
                        raise Invalid(
                            f"the journal of {part.file} is not replayed", hint="export it from an image that is sound"
                        )

    async def _make(self, job: Job, image: Image, directory: Path) -> Image:
        """Publish the image of these parts, with this person's key in place of the exporter's."""
        async with catalog.workspace(self._paths) as work:
            out = ImagePaths(work / "image").directory
            out.mkdir(mode=0o700)
            async with job.stage("keys", deadline_s=KEYS_S):
                for part in image.parts.values():
                    await self._move(job, directory / part.file, out / part.file)
                image = await self._exchange_keys(job, image, out)
            async with job.stage("publish", deadline_s=PUBLISH_S):
                await in_thread(_publish, self._paths, image, out)
        return image

    async def _move(self, job: Job, source: Path, target: Path) -> None:
        try:
            source.rename(target)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            await copy_disk(source, target, job, self._admission.room)
            source.unlink()
        target.chmod(0o644)  # programs without privileges read it

    async def _exchange_keys(self, job: Job, image: Image, out: Path) -> Image:
        """The exporter's key would let the exporter into every VM that is made of the image."""
        key = await self._bundle.key()
        if image.seed_key == key.fingerprint:
            return image
        changed: dict[str, ImagePart] = {}
        for role, home in _FILESYSTEMS.items():
            if role not in image.parts:
                continue
            file, part = out / image.parts[role].file, image.parts[role]
            if await exchange_key(file, home, key, image.seed_key, always=role == WORK_SEED):
                digest = await _digest(file)
                changed[role] = msgspec.structs.replace(part, sha256=digest, bytes=file.stat().st_size)
        if changed:
            job.note("its machines let in this host's key instead of the one where it was exported")
        seed_key = key.fingerprint if WORK_SEED in image.parts else ""
        return msgspec.structs.replace(image, parts={**image.parts, **changed}, seed_key=seed_key)


async def _digest(file: Path) -> str:
    return await run_stoppable(lambda stop: sha256_of(file, lambda count: stop.check()))


async def _with_progress(job: Job, work: Callable[[Stop, Callable[[int, int], None]], T]) -> T:
    """Run it in a thread that a cancellation ends; it is given what hears how many bytes of how many are done."""
    loop = asyncio.get_running_loop()

    def told(done: int, total: int) -> None:
        loop.call_soon_threadsafe(job.progress, done, total, "bytes")

    return await run_stoppable(lambda stop: work(stop, told))


def _told(path: Path) -> str:
    return "a pipe" if path.is_relative_to("/proc") else path.name


@asynccontextmanager
async def _opened(path: Path) -> AsyncIterator[int]:
    """A descriptor to read from. Raises `Invalid`."""
    try:
        # O_NONBLOCK: nothing that could be there makes us wait for somebody to open its other end
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError as error:
        raise Invalid(f"cannot open {path}: {error.strerror}", hint="look at its permissions") from error
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _publish(paths: Paths, image: Image, directory: Path) -> None:
    for part in image.parts.values():
        make_read_only(directory / part.file)
        sync_path(directory / part.file)
    catalog.publish(paths, image, directory)
