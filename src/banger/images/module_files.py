"""The modules that our initramfs needs, taken out of whatever has them: a directory, or a root filesystem."""

import os
import stat
from collections.abc import Callable
from pathlib import Path

from banger.images.initramfs import DRIVERS, build_initramfs, pack, read_busybox
from banger.images.modules import MAX_MODULE, Resolved, module_name, resolve
from banger.model.errors import Invalid

DEPENDENCIES, BUILTIN = "modules.dep", "modules.builtin"
_MAX_LIST = 16 * 1024 * 1024
_MAX_FILES, _MAX_BYTES = 100, 256 * 1024 * 1024

# The content of a file below lib/modules/RELEASE of at most so many bytes; None where there is none.
ReadModule = Callable[[str, int], bytes | None]


def directory_reader(directory: Path) -> ReadModule:
    """Of a directory on this host; what is no plain file is not there."""

    def read(name: str, limit: int) -> bytes | None:
        try:
            fd = os.open(directory / name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            return None
        with os.fdopen(fd, "rb") as file:
            seen = os.fstat(fd)
            if not stat.S_ISREG(seen.st_mode):
                return None
            if seen.st_size > limit:
                raise Invalid(f"{directory / name} has {seen.st_size} bytes, more than the {limit} that are read of it")
            return file.read(limit)

    return read


def builtin_modules(read: ReadModule) -> frozenset[str]:
    """What modules.builtin says is in the kernel itself; empty without one."""
    raw = read(BUILTIN, _MAX_LIST) or b""
    return frozenset(module_name(line) for line in raw.decode("ascii", "replace").splitlines() if line)


def has_modules(read: ReadModule) -> bool:
    return read(DEPENDENCIES, _MAX_LIST) is not None


def make_initramfs(read: ReadModule | None, scratch: Path) -> tuple[bytes, tuple[str, ...]]:
    """Our initramfs with the modules that are there, and their names; without any for a kernel that needs none.

    `scratch` is a new directory to work in. Raises `Invalid` for modules that contradict themselves or are too large,
    `HostRequirement` without busybox.
    """
    if read is None or not has_modules(read):
        return pack(read_busybox(), []), ()
    scratch.mkdir()
    for name in (DEPENDENCIES, BUILTIN):
        (scratch / name).write_text((read(name, _MAX_LIST) or b"").decode("ascii", "replace").replace("\0", "?"))
    _copy(read, resolve(scratch, DRIVERS), scratch)
    initramfs, resolved = build_initramfs(scratch)
    return initramfs, resolved.names


def _copy(read: ReadModule, resolved: Resolved, target: Path) -> None:
    """Put the files of these modules into the directory, where `resolve` has found that they stay inside."""
    total = 0
    if len(resolved.files) > _MAX_FILES:
        raise Invalid(f"{DEPENDENCIES} names {len(resolved.files)} files for a few drivers", hint="run depmod")
    for file in resolved.files:
        content = read(str(file), MAX_MODULE)
        if content is None:
            raise Invalid(f"{DEPENDENCIES} names {file}, which is not there", hint="run depmod for these modules")
        total += len(content)
        if total > _MAX_BYTES:
            raise Invalid(f"the modules of a few drivers have more than {_MAX_BYTES >> 20} MiB")
        place = target / file
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)
