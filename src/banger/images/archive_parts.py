"""Parts that imports have unpacked: a directory for each archive, by the digest of its manifest, with what is complete.

An import that was interrupted leaves there what the next one of the same archive need not write again.
"""

import errno
import hashlib
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from banger.images.archive_manifest import FILES, Manifest
from banger.model.errors import Conflict, HostRequirement, Invalid
from banger.paths import Paths
from banger.system.files import in_thread, remove_tree
from banger.system.locks import lock_existing

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@asynccontextmanager
async def unpacking(paths: Paths, raw: bytes) -> AsyncIterator[Path]:
    """The directory for the archive with this manifest, nobody else's meanwhile.

    Afterwards it is gone, unless the import was interrupted by something that says nothing against the archive: then
    the complete parts stay in it. Raises `Conflict` while another import has it, `HostRequirement` for a full disk.
    """
    directory = paths.imports / hashlib.sha256(raw).hexdigest()
    try:
        directory.mkdir(parents=True, mode=0o700, exist_ok=True)
        lock = lock_existing(directory, shared=False)
    except FileNotFoundError:  # the other one has just come to its end
        lock = None
    if lock is None:
        raise Conflict("this archive is being imported already", hint="`banger operation list` shows it")
    try:
        await in_thread(_clear, directory)
        yield directory
        await remove_tree(directory)
    except Invalid:
        await remove_tree(directory)
        raise
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise HostRequirement(
            f"the disk is full: {error.strerror} below {paths.imports}",
            hint="make room and import it again: what is complete is kept; `banger capacity` shows what takes the room",
        ) from error
    finally:
        if directory.is_dir():
            await in_thread(tidy, directory)
        os.close(lock)


def kept_parts(directory: Path, manifest: Manifest) -> set[str]:
    """Names of the parts that are there, whole: they got their names only when their digests were right."""
    return {
        part.file
        for part in manifest.parts
        if (directory / part.file).is_file() and (directory / part.file).stat().st_size == part.bytes
    }


def tidy(directory: Path) -> None:
    """Remove what is no complete part, and a directory that holds none."""
    _clear(directory)
    try:
        directory.rmdir()
    except OSError as error:
        if error.errno != errno.ENOTEMPTY:
            raise


def _clear(directory: Path) -> None:
    for path in directory.iterdir():
        if path.name not in FILES.values() and not path.is_dir():
            path.unlink()
