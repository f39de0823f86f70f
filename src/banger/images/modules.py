"""Kernel modules: which files a driver needs, in the order they are loaded, and their plain content."""

import lzma
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import zstandard

from banger.model.errors import Invalid

MAX_MODULE = 64 * 1024 * 1024


@dataclass(frozen=True)
class Resolved:
    """Module files relative to their directory, dependencies first; and names that exist nowhere."""

    files: tuple[PurePosixPath, ...]
    missing: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(module_name(str(file)) for file in self.files)


def module_name(path: str) -> str:
    """`kernel/net/foo-bar.ko.xz` is the module foo_bar."""
    return path.rsplit("/", 1)[-1].split(".ko")[0].replace("-", "_")


def _dependencies(directory: Path) -> dict[str, list[str]]:
    """modules.dep(5): each line is a file, a colon, and every file it needs, to be loaded last to first."""
    found = {}
    for line in (directory / "modules.dep").read_text().splitlines():
        file, _, needed = line.partition(":")
        found[module_name(file)] = [*reversed(needed.split()), file]
    return found


def resolve(directory: Path, wanted: Iterable[str]) -> Resolved:
    """What to load for these drivers from `directory`, a lib/modules/<release> after depmod.

    Built-in drivers need nothing.
    Raises `Invalid` when modules.dep names a file outside the directory.
    """
    builtin = {module_name(line) for line in (directory / "modules.builtin").read_text().splitlines()}
    dependencies = _dependencies(directory)
    files: dict[PurePosixPath, None] = {}
    missing = []
    for name in wanted:
        if name in dependencies:
            files.update(dict.fromkeys(PurePosixPath(file) for file in dependencies[name]))
        elif name not in builtin:
            missing.append(name)
    for file in files:
        if file.is_absolute() or ".." in file.parts:
            raise Invalid(f"modules.dep names a file outside its directory: {file}", hint="use another kernel")
    return Resolved(tuple(files), tuple(missing))


def read_module(path: Path) -> bytes:
    """The module's plain ELF, whether the file is .ko, .ko.xz, .ko.gz or .ko.zst; at most 64 MiB.

    Raises `Invalid` for anything else.
    """
    raw = path.read_bytes()
    try:
        content = _plain(path.suffix, raw)
    except (lzma.LZMAError, zlib.error, zstandard.ZstdError) as error:
        raise Invalid(f"the kernel module {path.name} is damaged: {error}", hint="fetch the kernel again") from error
    if len(content) > MAX_MODULE or not content.startswith(b"\x7fELF"):
        raise Invalid(f"{path.name} is not a kernel module", hint="fetch the kernel again")
    return content


def _plain(suffix: str, raw: bytes) -> bytes:
    if suffix == ".xz":
        return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=MAX_MODULE * 4).decompress(raw, MAX_MODULE + 1)
    if suffix == ".gz":
        return zlib.decompressobj(31).decompress(raw, MAX_MODULE + 1)
    if suffix == ".zst":
        with zstandard.ZstdDecompressor().stream_reader(raw) as reader:
            return reader.read(MAX_MODULE + 1)
    return raw
