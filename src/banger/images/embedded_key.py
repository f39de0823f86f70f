"""The SSH key that a filesystem's home of root lets in, exchanged without mounting or copying it."""

from pathlib import Path

from banger.images.unmounted import unmounted
from banger.model.errors import NotFound
from banger.model.home import AUTHORIZED_KEYS, KEYS_MODE, SSH_DIRECTORY, SSH_MODE
from banger.model.keys import PublicKey, exchange
from banger.system.debugfs import Command, edit, own, write
from banger.system.ext4 import check_ext4

_DIRECTORY = 0o040000


async def exchange_key(filesystem: Path, inside: str, key: PublicKey, old: str, *, always: bool) -> bool:
    """Let `key` in where the key with the fingerprint `old` was, and other entries as they are. See `exchange`.

    A home that lets in nobody is left alone unless `always`. Whether it was changed. The filesystem is nobody else's,
    and may be of anybody's making. Raises `Invalid`, `CommandFailed`, `Timeout`.
    """
    home = inside.rstrip("/")
    keys, ssh = f"{home}/{AUTHORIZED_KEYS}", f"{home}/{SSH_DIRECTORY}"
    commands: list[Command] = []
    async with unmounted(filesystem, filesystem.parent) as reader:
        try:
            text = (await reader.read(keys)).decode(errors="surrogateescape")
            commands.append(("rm", keys))
        except NotFound:
            if not always:
                return False
            text = ""
            try:
                await reader.ask([f"stat {ssh}"])
            except NotFound:
                commands += [("mkdir", ssh), *own(ssh, _DIRECTORY | SSH_MODE)]
    changed = exchange(text, key, old).encode(errors="surrogateescape")
    await edit(filesystem, [*commands, *write(ssh, AUTHORIZED_KEYS.rpartition("/")[2], changed, KEYS_MODE)])
    await check_ext4(filesystem)
    return True
