"""Copying whole directories out of a filesystem that is not mounted, and that anybody may have written."""

import re
import secrets
import stat
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, asynccontextmanager
from pathlib import Path

from banger.images.unmounted import PROMPT, Reader, make_scratch
from banger.model.errors import Invalid
from banger.system.files import remove_tree

# for so many bytes, held until the end of the block
Room = Callable[[int], AbstractContextManager[None]]
MAX_FILES, MAX_BYTES, MAX_DEPTH = 50_000, 2 * 1024**3, 64
_UNUSED = b"/0/"  # an entry without an inode
_ENTRY = re.compile(rb"/(\d+)/(\d{6})/\d+/\d+/([^/]+)/(\d*)/")  # inode, mode, uid, gid, name, size


class TreeReader(Reader):
    """A reader that copies directories as well, once it has looked through them."""

    async def survey(self, inside: str) -> int:
        """The bytes that a copy will have. Raises `Invalid` for a tree that is not to be copied, `NotFound`."""
        count = content = 0
        level, seen = [inside], set[bytes]()
        for _ in range(MAX_DEPTH):
            if not level:
                return content
            listed = await self.ask([f"ls -p {directory}" for directory in level])
            level = []
            for inode, mode, size in self._entries(listed):
                count, content = count + 1, content + size
                if count > MAX_FILES or content > MAX_BYTES:
                    raise self.refused(f"more than {MAX_FILES} files or {MAX_BYTES >> 20} MiB")
                if stat.S_ISDIR(mode):
                    if inode in seen:
                        raise self.refused("a directory in two places")
                    seen.add(inode)
                    level.append(f"<{inode.decode()}>")
        raise self.refused(f"more than {MAX_DEPTH} directories in each other")

    def _entries(self, listed: bytes) -> Iterator[tuple[bytes, int, int]]:
        """Inode, mode and size of what the directories hold. Raises `Invalid` for names that lead elsewhere."""
        names = set[bytes]()
        for line in listed.split(b"\n"):
            if line.startswith(PROMPT):
                names.clear()
            elif line and not line.startswith(_UNUSED):
                entry = _ENTRY.fullmatch(line)
                if entry is None or entry[3] in names:
                    raise self.refused("a name that cannot be one")
                names.add(entry[3])
                if entry[3] not in (b".", b".."):
                    yield entry[1], int(entry[2], 8), int(entry[4] or 0)

    def refused(self, why: str) -> Invalid:
        return Invalid(f"a directory in {self.filesystem.name} cannot be copied: it has {why}")

    async def dump(self, inside: str) -> None:
        """Copy the directory into the scratch directory, under its own name; `survey` has found that it may be."""
        await self.ask([f"rdump {inside} ."])


@asynccontextmanager
async def copied_directory(filesystem: Path, inside: str, beside: Path, room: Room) -> AsyncIterator[Path]:
    """A copy of the directory `inside` the filesystem, below `beside`; it and the room for it are gone afterwards.

    It belongs to nobody in particular. Nothing in it that is a link may be followed. Raises `NotFound`, `Invalid` for
    one that is none or is too large, `CommandFailed`, `Timeout`, and what `room` raises.
    """
    scratch = beside / f".copy-{secrets.token_hex(4)}"
    copy = scratch / inside.rpartition("/")[2]
    try:
        make_scratch(scratch)
        reader = TreeReader(filesystem, scratch)
        with room(await reader.survey(inside)):
            await reader.dump(inside)
            if not stat.S_ISDIR(copy.lstat().st_mode):
                raise Invalid(f"{inside} in {filesystem.name} is no directory")
            yield copy
    finally:
        await remove_tree(scratch)
