"""Registered images: described in our directory, with files that lie where their owner has them.

What is in the directory is replaced as other images' parts are: image.json, by a rename, is the moment.
"""

import secrets
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from banger.images.catalog import measure_parts, part_path, read_metadata, write_metadata
from banger.images.counted import counted
from banger.model.errors import Conflict, Invalid
from banger.model.image import WORK_SEED, Image, ImagePart
from banger.model.progress import Progress
from banger.paths import Paths
from banger.system.files import allocated_bytes, in_thread, sha256_of, sync_path
from banger.system.locks import FileLock

_LOCK_S = 30.0
_TOLD = ("boot_args", "distro", "release", "kernel_release", "needs_acpi", "init_version", "packages")


async def measure_elsewhere(files: Mapping[str, Path], progress: Progress) -> dict[str, ImagePart]:
    """The parts that somebody's files are, by role. Raises `Invalid` for one that changes meanwhile, or is gone."""

    def measure(told: Callable[[int], None]) -> dict[str, ImagePart]:
        return {role: _measured(path, told) for role, path in files.items()}

    total = sum(map(allocated_bytes, files.values()))
    return await counted(measure, progress, total)


def _measured(path: Path, told: Callable[[int], None]) -> ImagePart:
    try:
        before = path.stat()
        digest = sha256_of(path, told)
        after = path.stat()
    except OSError as error:
        raise Invalid(f"{path} cannot be read: {error.strerror}") from error
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise Invalid(f"{path} was changed while it was read", hint="try again when nothing writes to it any more")
    return ImagePart(str(path), after.st_size, digest, modified_ns=after.st_mtime_ns)


def differences(old: Image, new: Image) -> list[str]:
    """What would be otherwise; empty when both say the same of the same files. The work seed does not count."""
    found = []
    for role in sorted({*old.parts, *new.parts} - {WORK_SEED}):
        before, after = old.parts.get(role), new.parts.get(role)
        if before is None or after is None:
            found.append(f"{role}: {'there was none' if before is None else 'there is none any more'}")
        elif before.sha256 != after.sha256:
            found.append(f"{role}: other content")
        elif before.elsewhere != after.elsewhere or (after.elsewhere and before.file != after.file):
            found.append(f"{role}: it was {before.file}, and is {after.file} now")
    return found + [
        f"{field.replace('_', ' ')}: it was {getattr(old, field)!r}, and is {getattr(new, field)!r} now"
        for field in _TOLD
        if getattr(old, field) != getattr(new, field)
    ]


def same_files(image: Image, fresh: Mapping[str, ImagePart]) -> Image:
    """The image, when what was measured anew has the content that it had; its times are the new ones.

    Raises `Conflict` naming each file that has another.
    """
    others = [part.file for role, part in fresh.items() if part.sha256 != image.parts[role].sha256]
    if others:
        raise Conflict(
            f"{' and '.join(others)} {'have' if len(others) > 1 else 'has'} another content than when it was "
            f"registered as the image {image.name}",
            hint=f"put it back as it was, or register all files anew: "
            f"`banger image register {image.name} --rootfs FILE --kernel FILE --replace`",
        )
    times = {role: msgspec.structs.replace(image.parts[role], modified_ns=fresh[role].modified_ns) for role in fresh}
    return msgspec.structs.replace(image, parts={**image.parts, **times})


async def replace_registered(paths: Paths, old: Image, new: Image, made: Mapping[str, Path], work: Path) -> Image:
    """Let a registered image be described anew; `made` are its new files by role, in the workspace `work`.

    What they replace stays until the daemon starts next. The work seed stays while the root is the same. Raises
    `Conflict` when somebody else has changed the image, `Timeout`, `OSError`.
    """
    measured = {role: await in_thread(_with_a_name, path) for role, path in made.items()}

    def replace() -> Image:
        now = _unchanged(paths, old)
        parts, moved = dict(new.parts), {}
        for role, part in measured.items():
            before = now.parts.get(role)
            if before is not None and not before.elsewhere and before.sha256 == part.sha256:
                parts[role] = before
            else:
                parts[role], moved[made[role]] = part, part.file
        root, was = new.parts["root"], now.parts["root"]
        result = msgspec.structs.replace(new, parts=parts)
        if root.sha256 == was.sha256:
            formerly = tuple(dict.fromkeys(name for name in (*was.formerly, was.file) if name != root.file))
            parts["root"] = msgspec.structs.replace(root, formerly=formerly)
            if WORK_SEED in now.parts:
                parts[WORK_SEED] = now.parts[WORK_SEED]
                result = msgspec.structs.replace(result, seed_key=now.seed_key)
        return _settle(paths, result, moved, work)

    return await _locked(paths, old.name, replace)


def _with_a_name(path: Path) -> ImagePart:
    part = measure_parts(path.parent, {"": path})[""]
    return msgspec.structs.replace(part, file=f"{path.stem}-{secrets.token_hex(4)}{path.suffix}")


async def become_managed(paths: Paths, seen: Image, made: Image, directory: Path, work: Path) -> Image:
    """Let a registered image have copies of its files, and what else was made of them, for its own.

    `made` describes the files in `directory`, which are measured and durable; `seen` is the image as they were copied
    of it. What the image had made before stays. Raises as `replace_registered`.
    """

    def replace() -> Image:
        now = _unchanged(paths, seen)
        parts, moved = {}, {}
        for role, part in made.parts.items():
            before = now.parts.get(role)
            if before is not None and not before.elsewhere:
                parts[role] = before
                continue
            parts[role] = part
            if role == "root" and before is not None:
                parts[role] = msgspec.structs.replace(part, formerly=(*before.formerly, before.file))
            moved[directory / part.file] = part.file
        seed_key = now.seed_key if WORK_SEED in now.parts else made.seed_key
        result = msgspec.structs.replace(now, parts=parts, managed=True, packages=made.packages, seed_key=seed_key)
        return _settle(paths, result, moved, work)

    return await _locked(paths, seen.name, replace)


async def _locked(paths: Paths, name: str, work: Callable[[], Image]) -> Image:
    lock = FileLock(paths.image(name).lock)
    await lock.acquire(_LOCK_S)
    try:
        return await in_thread(work)
    finally:
        lock.release()


def _unchanged(paths: Paths, seen: Image) -> Image:
    """The image as it is now. Raises `Conflict` when more than its work seed is other than it was seen."""
    now = read_metadata(paths.image(seen.name))
    if now.managed != seen.managed or any(
        now.parts.get(role) != part for role, part in seen.parts.items() if role != WORK_SEED
    ):
        raise Conflict(f"the image {seen.name} was changed meanwhile", hint="look at it, and try again")
    return now


def _settle(paths: Paths, image: Image, moved: Mapping[Path, str], work: Path) -> Image:
    where, document = paths.image(image.name), work / "image.json"
    write_metadata(document, image)
    for path, name in moved.items():
        path.rename(where.directory / name)
    sync_path(where.directory)
    document.rename(where.metadata)
    sync_path(where.directory)
    return image


def files_elsewhere(paths: Paths, image: Image) -> dict[str, Path]:
    """Those files of an image that are somebody's, by role."""
    return {role: part_path(paths, image, role) for role, part in image.parts.items() if part.elsewhere}
