"""Root's home, read out of an unmounted filesystem: of an image's root, or of its work seed."""

import secrets
import shutil
import stat
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager, asynccontextmanager
from pathlib import Path

from banger.images.unmounted import make_scratch
from banger.images.unmounted_tree import TreeReader
from banger.model.errors import Invalid, NotFound
from banger.model.home import AUTHORIZED_KEYS, KEYS_MODE, SSH_DIRECTORY, SSH_MODE
from banger.model.keys import PublicKey, exchange, fingerprint
from banger.system.files import in_thread, remove_tree, write_new

# for so many bytes, held until the end of the block
Room = Callable[[int], AbstractContextManager[None]]
ROOT_HOME, SEED_HOME = "/root", "/"  # where the home is in an image's root, and in a work seed
_MAX_KEYS = 1024 * 1024
_HOME = "root"  # what the copy is called, and the last part of ROOT_HOME


@asynccontextmanager
async def copied_home(filesystem: Path, inside: str, beside: Path, room: Room) -> AsyncIterator[Path]:
    """A copy of the directory `inside` the filesystem, below `beside`; it and the room for it are gone afterwards.

    An empty one where there is no such directory. It belongs to nobody in particular. Nothing in it that is a link may
    be followed. Raises `Invalid` for a home that is none, or is too large, `CommandFailed`, `Timeout`, and what `room`
    raises.
    """
    scratch = beside / f".home-{secrets.token_hex(4)}"
    home = scratch / _HOME
    try:
        make_scratch(scratch)
        reader = _Reader(filesystem, scratch)
        try:
            content = await reader.survey(inside)
        except NotFound:  # a root without a home: the first process of its machines makes one
            make_scratch(home)
            yield home
            return
        with room(2 * content):  # the copy, and what is made of it
            await reader.dump(inside)
            await in_thread(shutil.rmtree, home / "lost+found", ignore_errors=True)
            if not stat.S_ISDIR(home.lstat().st_mode):
                raise Invalid(f"{inside} in {filesystem.name} is no directory")
            yield home
    finally:
        await remove_tree(scratch)


async def home_keys(filesystem: Path, inside: str, beside: Path) -> list[str]:
    """Fingerprints of the keys that a home lets in. `beside` is for what lies on disk meanwhile. Raises as above."""
    scratch = beside / f".home-{secrets.token_hex(4)}"
    try:
        make_scratch(scratch)
        text = await _Reader(filesystem, scratch).read(f"{inside.rstrip('/')}/{AUTHORIZED_KEYS}")
    finally:
        await remove_tree(scratch)
    return [found for line in text.decode(errors="replace").splitlines() if (found := fingerprint(line))]


class _Reader(TreeReader):
    """One that says what helps when a home is none that can be copied."""

    def refused(self, why: str) -> Invalid:
        return Invalid(
            f"the home of root in {self.filesystem.name} cannot be copied: it has {why}",
            hint="make the VM with --no-work-disk: /root stays on its root disk then",
        )

    async def dump(self, inside: str) -> None:
        """Copy the tree; `survey` has found that it may be."""
        if inside == SEED_HOME:
            make_scratch(self.scratch / _HOME)
            await self.ask([f"rdump / {_HOME}"])
        else:
            await super().dump(inside)


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
