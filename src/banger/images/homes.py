"""Root's home, read out of an unmounted filesystem: of an image's root, or of its work seed."""

import os
import re
import secrets
import shlex
import shutil
import stat
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractContextManager, asynccontextmanager
from pathlib import Path

from banger.model.errors import CommandFailed, Invalid
from banger.model.home import AUTHORIZED_KEYS, KEYS_MODE, SSH_DIRECTORY, SSH_MODE
from banger.model.keys import PublicKey, exchange, fingerprint
from banger.model.text import harmless
from banger.system.files import clone_file, copy_sparse, in_thread, remove_tree, write_new
from banger.system.process import find_program
from banger.system.unprivileged import give_away, run_unprivileged

# for so many bytes, held until the end of the block
Room = Callable[[int], AbstractContextManager[None]]
ROOT_HOME, SEED_HOME = "/root", "/"  # where the home is in an image's root, and in a work seed
MAX_FILES, MAX_BYTES, MAX_DEPTH = 50_000, 2 * 1024**3, 64
_MAX_KEYS = 1024 * 1024
_PRINTED = 32 * 1024 * 1024
_READ_S = 300.0
_HOME = "root"  # what the copy is called, and the last part of ROOT_HOME
_PROMPT = b"debugfs: "  # before each command, which it repeats
_UNUSED = b"/0/"  # an entry without an inode
_OWNER = b"Operation not permitted while changing ownership of"  # nor is it meant to
_ENTRY = re.compile(rb"/(\d+)/(\d{6})/\d+/\d+/([^/]+)/(\d*)/")  # inode, mode, uid, gid, name, size


@asynccontextmanager
async def copied_home(filesystem: Path, inside: str, beside: Path, room: Room) -> AsyncIterator[Path]:
    """A copy of the directory `inside` the filesystem, below `beside`; it and the room for it are gone afterwards.

    It belongs to nobody in particular. Nothing in it that is a link may be followed. Raises `Invalid` for a home that
    is none, or is too large, `CommandFailed`, `Timeout`, and what `room` raises.
    """
    scratch = beside / f".home-{secrets.token_hex(4)}"
    home = scratch / _HOME
    try:
        _make_directory(scratch)
        reader = _Reader(filesystem, scratch)
        content = await reader.survey(inside)
        with room(2 * content):  # the copy, and what is made of it
            await reader.dump(inside)
            await in_thread(shutil.rmtree, home / "lost+found", ignore_errors=True)
            if not stat.S_ISDIR(home.lstat().st_mode):
                raise Invalid(f"{inside} in {filesystem.name} is no directory")
            yield home
    finally:
        await remove_tree(scratch)


def _make_directory(directory: Path) -> None:
    """One that the program may write."""
    directory.mkdir(mode=0o700)
    give_away(directory)


async def home_keys(filesystem: Path, inside: str, beside: Path) -> list[str]:
    """Fingerprints of the keys that a home lets in. `beside` is for what lies on disk meanwhile. Raises as above."""
    scratch = beside / f".home-{secrets.token_hex(4)}"
    try:
        _make_directory(scratch)
        text = await _Reader(filesystem, scratch).read(f"{inside.rstrip('/')}/{AUTHORIZED_KEYS}")
    finally:
        await remove_tree(scratch)
    return [found for line in text.decode(errors="replace").splitlines() if (found := fingerprint(line))]


class _Reader:
    """debugfs, which reads a filesystem that it need not trust, and works in a directory of its own."""

    def __init__(self, filesystem: Path, scratch: Path) -> None:
        self._filesystem = filesystem
        self._scratch = scratch

    async def survey(self, inside: str) -> int:
        """The bytes that a copy will have. Raises `Invalid` for a tree that is not to be copied."""
        count = content = 0
        level, seen = [inside], set[bytes]()
        for _ in range(MAX_DEPTH):
            if not level:
                return content
            listed = await self._ask([f"ls -p {directory}" for directory in level])
            level = []
            for inode, mode, size in self._entries(listed):
                count, content = count + 1, content + size
                if count > MAX_FILES or content > MAX_BYTES:
                    raise self._refused(f"more than {MAX_FILES} files or {MAX_BYTES >> 20} MiB")
                if stat.S_ISDIR(mode):
                    if inode in seen:
                        raise self._refused("a directory in two places")
                    seen.add(inode)
                    level.append(f"<{inode.decode()}>")
        raise self._refused(f"more than {MAX_DEPTH} directories in each other")

    def _entries(self, listed: bytes) -> Iterator[tuple[bytes, int, int]]:
        """Inode, mode and size of what the directories hold. Raises `Invalid` for names that lead elsewhere."""
        names = set[bytes]()
        for line in listed.split(b"\n"):
            if line.startswith(_PROMPT):
                names.clear()
            elif line and not line.startswith(_UNUSED):
                entry = _ENTRY.fullmatch(line)
                if entry is None or entry[3] in names:
                    raise self._refused("a name that cannot be one")
                names.add(entry[3])
                if entry[3] not in (b".", b".."):
                    yield entry[1], int(entry[2], 8), int(entry[4] or 0)

    def _refused(self, why: str) -> Invalid:
        return Invalid(
            f"the home of root in {self._filesystem.name} cannot be copied: it has {why}",
            hint="make the VM with --no-work-disk: /root stays on its root disk then",
        )

    async def dump(self, inside: str) -> None:
        """Copy the tree; `survey` has found that it may be."""
        if inside == SEED_HOME:
            _make_directory(self._scratch / _HOME)
            await self._ask([f"rdump / {_HOME}"])
        else:
            await self._ask([f"rdump {inside} ."])

    async def read(self, path: str) -> bytes:
        """The content of a small file."""
        return (await self._ask([f"cat {path}"])).partition(b"\n")[2]  # behind the prompt

    async def _ask(self, commands: Sequence[str]) -> bytes:
        """What debugfs prints. Raises `CommandFailed` when it complains, which it does with success as its status."""
        program = find_program("debugfs", package="e2fsprogs")
        with self._filesystem.open("rb") as file:
            path = await in_thread(self._readable, file.fileno())
            done = await run_unprivileged(
                [program, "-f", "-", path],
                cwd=self._scratch,
                timeout=_READ_S,
                limit=_PRINTED,
                input="".join(f"{command}\n" for command in commands).encode(),
                pass_fds=(file.fileno(),),
            )
        said = [line for line in done.stderr.splitlines() if not line.startswith(b"debugfs 1.") and _OWNER not in line]
        if said or done.status != 0:
            raise self._unreadable([program, "-R", commands[0], str(self._filesystem)], done.status, said)
        return done.stdout

    def _unreadable(self, argv: list[str], status: int, said: list[bytes]) -> CommandFailed:
        first = harmless(said[0].decode(errors="replace")) if said else f"debugfs ended with status {status}"
        return CommandFailed(
            f"{self._filesystem.name} cannot be read: {first}",
            hint=f"to try it by hand: {shlex.join(argv)}",
            details={"argv": argv, "status": status, "stderr": first},
        )

    def _readable(self, descriptor: int) -> str:
        """How the program reads the file that we have open: as it is, or a copy where only we may read it."""
        if os.geteuid() != 0 or os.fstat(descriptor).st_mode & stat.S_IROTH:
            return f"/proc/self/fd/{descriptor}"
        copy = self._scratch / "filesystem"
        if not copy.exists():
            if not clone_file(self._filesystem, copy):
                copy_sparse(self._filesystem, copy, lambda done, total: True)
            copy.chmod(0o444)
        return copy.name


def put_key(home: Path, key: PublicKey, old: str) -> None:
    """Let `key` in, in place of the key with the fingerprint `old`; other entries stay. See `exchange`."""
    ssh, keys = home / SSH_DIRECTORY, home / AUTHORIZED_KEYS
    if ssh.is_symlink() or not ssh.is_dir():
        ssh.unlink(missing_ok=True)
        ssh.mkdir()
    ssh.chmod(SSH_MODE)
    text = ""
    if keys.is_symlink() or not keys.is_dir():
        if keys.is_file() and not keys.is_symlink():
            with keys.open("rb") as file:
                text = file.read(_MAX_KEYS).decode(errors="surrogateescape")
        keys.unlink(missing_ok=True)
    else:
        shutil.rmtree(keys)
    write_new(keys, exchange(text, key, old).encode(errors="surrogateescape"), KEYS_MODE)
