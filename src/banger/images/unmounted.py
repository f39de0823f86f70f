"""Reading files out of a filesystem that is not mounted, and that anybody may have written."""

import os
import secrets
import shlex
import stat
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from banger.model.errors import BangerError, CommandFailed, NotFound
from banger.model.text import harmless
from banger.system.files import clone_file, copy_sparse, in_thread, remove_tree
from banger.system.process import find_program
from banger.system.unprivileged import give_away, run_unprivileged

PROMPT = b"debugfs: "  # before each command, which it repeats
_PRINTED = 32 * 1024 * 1024
_READ_S = 300.0
_OWNER = b"Operation not permitted while changing ownership of"  # nor is it meant to
_ABSENT = b"File not found by ext2_lookup"


def make_scratch(directory: Path) -> None:
    """Make a directory that the program may write."""
    directory.mkdir(mode=0o700)
    give_away(directory)


class Reader:
    """debugfs, which reads a filesystem that it need not trust, and works in a directory of its own."""

    def __init__(self, filesystem: Path, scratch: Path) -> None:
        self.filesystem = filesystem
        self.scratch = scratch

    async def read(self, path: str) -> bytes:
        """The content of a file of at most 32 MiB. Raises `NotFound`, `CommandFailed`, `Timeout`, `Invalid`."""
        return (await self.ask([f"cat {path}"])).partition(b"\n")[2]  # behind the prompt

    async def ask(self, commands: Sequence[str]) -> bytes:
        """What debugfs prints. Raises `CommandFailed` when it complains, which it does with success as its status;
        `NotFound` when that is because something is not there.
        """
        program = find_program("debugfs", package="e2fsprogs")
        with self.filesystem.open("rb") as file:
            path = await in_thread(self._readable, file.fileno())
            done = await run_unprivileged(
                [program, "-f", "-", path],
                cwd=self.scratch,
                timeout=_READ_S,
                limit=_PRINTED,
                input="".join(f"{command}\n" for command in commands).encode(),
                pass_fds=(file.fileno(),),
            )
        said = [line for line in done.stderr.splitlines() if not line.startswith(b"debugfs 1.") and _OWNER not in line]
        if said or done.status != 0:
            raise self._unreadable([program, "-R", commands[0], str(self.filesystem)], done.status, said)
        return done.stdout

    def _unreadable(self, argv: list[str], status: int, said: list[bytes]) -> BangerError:
        if said and said[0].rstrip().endswith(_ABSENT):
            what = harmless(said[0].partition(b":")[0].decode(errors="replace"))
            return NotFound(f"there is no {what} in {self.filesystem.name}")
        first = harmless(said[0].decode(errors="replace")) if said else f"debugfs ended with status {status}"
        return CommandFailed(
            f"{self.filesystem.name} cannot be read: {first}",
            hint=f"to try it by hand: {shlex.join(argv)}",
            details={"argv": argv, "status": status, "stderr": first},
        )

    def _readable(self, descriptor: int) -> str:
        """How the program reads the file that we have open: as it is, or a copy where only we may read it."""
        if os.geteuid() != 0 or os.fstat(descriptor).st_mode & stat.S_IROTH:
            return f"/proc/self/fd/{descriptor}"
        copy = self.scratch / "filesystem"
        if not copy.exists():
            if not clone_file(self.filesystem, copy):
                copy_sparse(self.filesystem, copy, lambda done, total: True)
            copy.chmod(0o444)
        return copy.name


@asynccontextmanager
async def unmounted(filesystem: Path, beside: Path) -> AsyncIterator[Reader]:
    """A reader of a filesystem; what it needs meanwhile lies below `beside`, and is gone afterwards."""
    scratch = beside / f".read-{secrets.token_hex(4)}"
    try:
        make_scratch(scratch)
        yield Reader(filesystem, scratch)
    finally:
        await remove_tree(scratch)
