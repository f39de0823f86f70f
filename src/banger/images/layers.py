"""The cache of builds: root disks as they were after a step, under a key of everything that led there.

A layer is a qcow2 over the base's root. It was written by a machine that ran what a recipe says, so only its header's
words are trusted after they were compared.
"""

import hashlib
import logging
import os
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from banger.model.errors import Invalid
from banger.system.files import allocated_bytes, in_thread
from banger.system.qcow2 import read_qcow2

BUILDER_VERSION = 1  # another way to do the same step is another layer
_PARTIAL = ".partial"
log = logging.getLogger(__name__)


class Layer(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a layer: the steps that it holds, by their titles; when it was last of use."""

    key: str
    base: str
    steps: tuple[str, ...]
    used_at: float


def layer_keys(root_sha256: str, size: int, steps: Iterable[tuple[str, str]]) -> list[str]:
    """A key for each step, given as kind and digest: over the base's root, the disk's size, and all steps so far."""
    keys = []
    key = _hash("banger-layer", str(BUILDER_VERSION), root_sha256, str(size))
    for kind, digest in steps:
        key = _hash(key, kind, digest)
        keys.append(key)
    return keys


def _hash(*words: str) -> str:
    return hashlib.sha256("\0".join(words).encode()).hexdigest()


class Layers:
    """The layers in a directory; together they take at most `bytes_max`. Every method may find another's files gone."""

    def __init__(self, directory: Path, bytes_max: int) -> None:
        self._directory = directory
        self._bytes_max = bytes_max

    @property
    def on(self) -> bool:
        return self._bytes_max > 0

    def disk(self, key: str) -> Path:
        return self._directory / f"{key}.qcow2"

    def longest(self, keys: Sequence[str], base_root: Path) -> int:
        """How many of the first steps the longest layer that can be used holds; 0 when there is none."""
        return next((count for count in range(len(keys), 0, -1) if self._usable(keys[count - 1], base_root)), 0)

    def _usable(self, key: str, base_root: Path) -> bool:
        disk = self.disk(key)
        try:
            if disk.is_symlink() or not disk.is_file() or not self._record(key).is_file():
                return False
            header = read_qcow2(disk)
        except (OSError, Invalid) as error:
            log.warning("the layer %s cannot be used: %s", disk, error)
            return False
        return header.backing == str(base_root.absolute()) and header.backing_format == "raw" and not (
            header.foreign or header.corrupt
        )  # fmt: skip

    def fresh(self, key: str) -> Path:
        """Where a copy of a disk that nobody writes meanwhile is to be put, for `commit`."""
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        return self._directory / f"{key}-{os.getpid()}-{time.monotonic_ns()}{_PARTIAL}"

    def commit(self, key: str, copy: Path, base: str, steps: Sequence[str]) -> None:
        """Make that copy the layer of this key; others go where there are too many. Raises `OSError`."""
        copy.rename(self.disk(key))
        self._write(Layer(key=key, base=base, steps=tuple(steps), used_at=time.time()))
        self.prune()

    def used(self, key: str) -> None:
        """A layer was of use now. Raises `OSError`, `msgspec.MsgspecError`."""
        layer = msgspec.json.decode(self._record(key).read_bytes(), type=Layer)
        self._write(msgspec.structs.replace(layer, used_at=time.time()))

    def _record(self, key: str) -> Path:
        return self._directory / f"{key}.json"

    def _write(self, layer: Layer) -> None:
        partial = self.fresh(layer.key)
        partial.write_bytes(msgspec.json.encode(layer))
        partial.rename(self._record(layer.key))

    def all(self) -> list[Layer]:
        """The last used first; what is no layer is left out."""
        found = []
        for path in self._directory.glob("*.json"):
            try:
                layer = msgspec.json.decode(path.read_bytes(), type=Layer)
            except (OSError, msgspec.MsgspecError):
                continue
            if layer.key == path.stem and self.disk(layer.key).is_file():
                found.append(layer)
        return sorted(found, key=lambda layer: layer.used_at, reverse=True)

    def prune(self, bytes_max: int | None = None) -> int:
        """Remove the least recently used until the others take at most so many bytes; the bytes that came free."""
        left = self._bytes_max if bytes_max is None else bytes_max
        freed = 0
        for layer in self.all():
            size = allocated_bytes(self.disk(layer.key))
            left -= size
            if left < 0:
                self._record(layer.key).unlink(missing_ok=True)
                self.disk(layer.key).unlink(missing_ok=True)
                freed += size
        return freed

    async def sweep(self) -> None:
        """Remove what a killed daemon had not finished. Only at start."""

        def remove() -> None:
            for path in self._directory.glob(f"*{_PARTIAL}"):
                path.unlink(missing_ok=True)
            for path in self._directory.glob("*.qcow2"):
                if not path.with_suffix(".json").exists():
                    path.unlink(missing_ok=True)
            self.prune()

        await in_thread(remove)
