"""Installing a release of Firecracker: fetched, verified, unpacked, and there all at once or not at all."""

import contextlib
import hashlib
import platform
import re
import secrets
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from banger.engine.releases import (
    RELEASES,
    Release,
    archive_name,
    archive_url,
    check_version,
    find_release,
    recommended,
)
from banger.model.engine import EngineInstalled, EngineInstallSpec, EngineRecord
from banger.model.errors import Busy, Conflict, HostRequirement, Invalid, NotFound
from banger.model.progress import Progress
from banger.paths import EnginePaths, Paths
from banger.system.files import in_thread, remove_tree, sync_path, write_new

NAME = "firecracker"
ARCHIVE_MAX = 256 * 1024 * 1024
DOWNLOAD_S = 3600.0
_TEMPORARY = ".tmp-"
_MAX_METADATA = 64 * 1024
_FILE_NAME = re.compile(r"firecracker-v(\d+\.\d+\.\d+)-x86_64\.tgz")
_SHA256 = re.compile(r"[0-9a-f]{64}")


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """An installation that may be tried: every digest in `digests` (`ALGORITHM:HEX`) must be the archive's."""

    version: str
    digests: tuple[str, ...]
    trust: str
    source: str
    programs: Mapping[str, str | None]


def make_plan(spec: EngineInstallSpec) -> Plan:
    """What will be installed, from where, and what its digest must be.

    Raises `Invalid`: contradictions, no such version, or no digest to verify it with; `HostRequirement`.
    """
    spec.check()
    if platform.machine() != "x86_64":
        raise HostRequirement(
            f"this host is {platform.machine()}, and banger installs Firecracker for x86-64 only",
            hint="a firecracker on PATH is used as well",
        )
    version = check_version(spec.version or _version_of(spec.file))
    release, given = find_release(version), (spec.sha256 or "").lower()
    if given and not _SHA256.fullmatch(given):
        raise Invalid(f"{spec.sha256!r} is not a SHA-256", hint="give its 64 hexadecimal digits")
    if release is None and not given:
        raise _unpinned(version)
    digests = ([release.archive] if release else []) + ([f"sha256:{given}"] if given else [])
    return Plan(
        version=version,
        digests=tuple(dict.fromkeys(digests)),
        trust=_trust(release, bool(given)),
        source=spec.file or archive_url(version, spec.mirror),
        programs={"firecracker": release.firecracker, "jailer": release.jailer} if release else {},
    )


def _version_of(file: str | None) -> str:
    if file is None:
        if (release := recommended()) is not None:
            return release.version
        raise Invalid("no release is pinned", hint="give --version, the archive as --file, and its --sha256")
    if match := _FILE_NAME.fullmatch(Path(file).name):
        return match[1]
    raise Invalid(f"the name {Path(file).name!r} does not tell the version", hint="give it with --version")


def _unpinned(version: str) -> Invalid:
    known = ", ".join(release.version for release in RELEASES)
    return Invalid(
        f"there is no digest of Firecracker {version} to verify it with",
        hint="give the archive's SHA-256, from a source that you trust, with --sha256"
        + (f"; or choose one of {known}" if known else ""),
    )


def _trust(release: Release | None, given: bool) -> str:
    by = [f"banger's table ({release.recorded})"] if release else []
    return " and ".join(by + (["the person who installed it"] if given else []))


async def install(paths: Paths, plan: Plan, progress: Progress) -> EngineInstalled:
    """Install a planned release; one that is there already is left as it is, and that is said.

    What a failure or a cancellation leaves is at most the part of the archive that came, in the cache.
    Raises `Invalid` (a wrong digest or archive), `Conflict` (installed from another archive), what `download` does.
    """
    from banger.engine.archive import unpack  # here, as in _fetch: 5 MiB that a daemon seldom needs

    where = paths.engine(NAME, plan.version)
    if where.directory.exists():
        return _already(where, plan, progress)
    async with (
        _workspace(paths) as directory,
        _archive(paths, plan, directory, progress) as archive,
        progress.stage("unpack"),
    ):
        release = directory / "release"
        release.mkdir(mode=0o755)
        found = await in_thread(unpack, archive, plan.version, release)
        _check_programs(plan, found)
        record = _record(plan, found)
        await in_thread(_publish, record, release, where)
    return EngineInstalled(changed=True, directory=str(where.directory), record=record)


def _already(where: EnginePaths, plan: Plan, progress: Progress) -> EngineInstalled:
    record = read_record(where)
    if record.archive not in plan.digests:
        raise Conflict(
            f"Firecracker {plan.version} is installed already, from another archive",
            hint=f"`banger engine remove {NAME} --version {plan.version}` removes it",
        )
    progress.note(f"Firecracker {plan.version} is installed already; nothing was changed")
    return EngineInstalled(changed=False, directory=str(where.directory), record=record)


@asynccontextmanager
async def _archive(paths: Paths, plan: Plan, directory: Path, progress: Progress) -> AsyncIterator[Path]:
    """The verified archive, which is gone afterwards."""
    if plan.source.startswith("/"):
        # a copy: what is verified is then what is unpacked, whoever else can write to the file
        target, url, stage = directory / archive_name(plan.version), Path(plan.source).as_uri(), "copy"
    else:
        target, url, stage = paths.downloads / archive_name(plan.version), plan.source, "download"
    target.parent.mkdir(parents=True, mode=0o700, exist_ok=True)
    try:
        resumed = await _fetch(url, target, stage, progress)
        try:
            await _verify(plan, target, progress)
        except Invalid:
            if not resumed:
                raise
            # what an earlier download left may be another server's, or what a crash made of it
            progress.note("the digest is wrong; what an earlier download had left is fetched again")
            await _fetch(url, target, stage, progress)
            await _verify(plan, target, progress)
        yield target
    finally:
        target.unlink(missing_ok=True)


async def _fetch(url: str, target: Path, stage: str, progress: Progress) -> bool:
    """Fetch the archive; returns whether a part of it was there before."""
    from banger.system.download import download

    def told(done: int, total: int | None) -> None:
        progress.progress(done, total, "bytes")

    async with progress.stage(stage, deadline_s=DOWNLOAD_S):
        return (await download(url, target, size_limit=ARCHIVE_MAX, progress=told)).resumed_at > 0


async def _verify(plan: Plan, archive: Path, progress: Progress) -> None:
    async with progress.stage("verify"):
        for expected in plan.digests:
            found = await in_thread(digest_of, archive, expected.partition(":")[0])
            if found != expected:
                raise Invalid(
                    f"the archive is not the one that is expected: its digest is {found}",
                    hint=f"it should be {expected}; nothing of it was unpacked",
                    details={"expected": expected, "found": found, "source": plan.source},
                )


def digest_of(path: Path, algorithm: str) -> str:
    """The file's digest as `ALGORITHM:HEX`; sha256 or sha512."""
    if algorithm not in ("sha256", "sha512"):
        raise Invalid(f"digests of the kind {algorithm!r} are not trusted")
    with path.open("rb") as file:
        return f"{algorithm}:{hashlib.file_digest(file, algorithm).hexdigest()}"


def _check_programs(plan: Plan, found: Mapping[str, str]) -> None:
    for name, expected in plan.programs.items():
        if expected is not None and expected != f"sha256:{found[name]}":
            raise Invalid(
                f"the {name} in the archive is not the one that is expected: its digest is sha256:{found[name]}",
                hint=f"it should be {expected}",
            )


def _record(plan: Plan, found: Mapping[str, str]) -> EngineRecord:
    return EngineRecord(
        name="firecracker",
        version=plan.version,
        archive=plan.digests[0],
        firecracker=f"sha256:{found['firecracker']}",
        jailer=f"sha256:{found['jailer']}",
        trust=plan.trust,
        source=plan.source,
        installed_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _publish(record: EngineRecord, release: Path, where: EnginePaths) -> None:
    metadata = EnginePaths(release).metadata
    write_new(metadata, msgspec.json.format(msgspec.json.encode(record)) + b"\n")
    sync_path(metadata)
    sync_path(release)
    release.rename(where.directory)
    sync_path(where.directory.parent)


@asynccontextmanager
async def _workspace(paths: Paths) -> AsyncIterator[Path]:
    """A fresh directory beside the releases that is gone afterwards, whatever happens."""
    parent = paths.engines / NAME
    parent.mkdir(parents=True, mode=0o700, exist_ok=True)
    directory = parent / f"{_TEMPORARY}{secrets.token_hex(6)}"
    directory.mkdir(mode=0o700)
    try:
        yield directory
    finally:
        await remove_tree(directory)


async def sweep(paths: Paths) -> None:
    """Remove what a killed daemon left half-made. Only at start, while nothing installs."""
    for left in (paths.engines / NAME).glob(f"{_TEMPORARY}*"):
        await remove_tree(left)


def installed(paths: Paths) -> list[EnginePaths]:
    """The directories of the installed releases, sound or not."""
    with contextlib.suppress(FileNotFoundError):
        return [EnginePaths(entry) for entry in _entries(paths.engines / NAME)]
    return []


def _entries(directory: Path) -> Iterator[Path]:
    return (entry for entry in sorted(directory.iterdir()) if entry.is_dir() and not entry.name.startswith("."))


def read_record(where: EnginePaths) -> EngineRecord:
    """What engine.json says. Raises `Invalid` when it cannot be used."""
    try:
        with where.metadata.open("rb") as file:
            record = msgspec.json.decode(file.read(_MAX_METADATA), type=EngineRecord)
    except (OSError, msgspec.MsgspecError) as error:
        raise _damaged(where, f"engine.json cannot be used: {error}") from error
    if record.version != where.directory.name:
        raise _damaged(where, f"engine.json says that it is {record.version}")
    return record


def _damaged(where: EnginePaths, what: str) -> Invalid:
    version = where.directory.name
    return Invalid(
        f"Firecracker {version} is damaged: {what}",
        hint=f"`banger engine remove {NAME} --version {version}`, then install it again",
    )


async def verify(where: EnginePaths) -> None:
    """Compare the programs with their recorded digests. Raises `Invalid` saying what has changed."""
    record = read_record(where)
    for path, expected in ((where.firecracker, record.firecracker), (where.jailer, record.jailer)):
        try:
            found = await in_thread(digest_of, path, "sha256")
        except OSError as error:
            raise _damaged(where, f"{path.name} cannot be read: {error.strerror}") from error
        if found != expected:
            raise _damaged(where, f"the content of {path.name} has changed")


async def remove(paths: Paths, version: str, in_use: Callable[[], Mapping[str, str]]) -> None:
    """Remove an installed release, sound or not. `in_use` tells which programs run, each with the VM that it serves.

    Raises `NotFound`, `Busy` while a VM runs from it.
    """
    there = {where.directory.name: where for where in installed(paths)}
    where = there.get(version.removeprefix("v"))
    if where is None:
        known = f"installed: {', '.join(there)}" if there else "none is installed"
        raise NotFound(f"Firecracker {version} is not installed", hint=f"{known}; `banger engine list` shows all")
    for program, vm in in_use().items():
        if Path(program) in (where.firecracker, where.jailer):
            raise Busy(
                f"Firecracker {where.directory.name} runs the VM {vm}", hint=f"stop it first: banger vm stop {vm}"
            )
    # its name goes at once, so that nothing starts from a half-removed directory
    doomed = where.directory.with_name(f"{_TEMPORARY}{secrets.token_hex(6)}")
    where.directory.rename(doomed)
    await remove_tree(doomed)
