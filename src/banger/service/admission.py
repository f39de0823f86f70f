"""Whether the disk has room: asked before VMs are made or started."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from banger.config import Settings
from banger.model.capacity import Filesystem
from banger.model.errors import HostRequirement
from banger.model.sizes import MIB, show_size
from banger.paths import Paths
from banger.system.filesystems import filesystem_of

FLOOR_MIN = 256 * MIB


class Admission:
    """Refuses what would leave less than the reserve free on the filesystem of the state directory."""

    def __init__(
        self, paths: Paths, settings: Settings, filesystem: Callable[[Path], Filesystem] = filesystem_of
    ) -> None:
        self._state = paths.state
        self._reserve = settings.disk_reserve_mib * MIB
        self._filesystem = filesystem
        self._held = 0

    @property
    def free(self) -> int:
        """Bytes that can be written on the filesystem of the state directory."""
        return self._filesystem(self._state).free

    @property
    def floor(self) -> int:
        """With fewer bytes free no guest may run that its engine would not pause when a write finds the disk full."""
        return max(FLOOR_MIN, self._reserve // 8)

    def full(self) -> str:
        """The problem of a VM that is paused because the disk is full."""
        return f"the host's disk is full: {show_size(self.free)} free at {self._state}"

    def check(self, needed: int = 0, *, least: int = 0) -> None:
        """Raise `HostRequirement` unless so many bytes can be written and the reserve, or `least`, still be free."""
        reserve = max(self._reserve, least)
        if not reserve:
            return
        free = self.free
        if free - self._held - needed >= reserve:
            return
        taken = [f"{show_size(needed)} would be written now"] if needed else []
        taken += [f"{show_size(self._held)} is being written"] if self._held else []
        raise HostRequirement(
            f"the disk has too little room: {show_size(free)} is free at {self._state}"
            f"{''.join(f', {text}' for text in taken)}, and {show_size(reserve)} must stay free",
            hint="`banger capacity` shows what takes the room; delete VMs, or lower disk_reserve_mib in config.toml",
            details={
                "free_bytes": free,
                "needed_bytes": needed,
                "held_bytes": self._held,
                "reserve_bytes": reserve,
            },
        )

    @contextmanager
    def room(self, needed: int) -> Iterator[None]:
        """Hold room for so many bytes, so that others who ask meanwhile are not given the same. Raises like `check`.

        What has been written of them is held all the same until the end: it may be refused a little early, never late.
        """
        self.check(needed)
        self._held += needed
        try:
            yield
        finally:
            self._held -= needed
