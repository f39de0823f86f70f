"""Looking into a work disk, before its machine starts: is the filesystem whole, and is root's home in order?"""

import stat
from collections.abc import Mapping
from pathlib import Path

from banger.model.errors import HostRequirement, Invalid
from banger.model.home import AUTHORIZED_KEYS, HOME_MODE, KEYS_MODE, SHELL_FILES, SSH_DIRECTORY, SSH_MODE
from banger.storage.findings import Findings, Repair, dated
from banger.system.debugfs import Command, own, write
from banger.system.ext4 import Damaged, Unreadable, read_superblock
from banger.system.ext4_reader import CASEFOLDED, ENCRYPTED, ROOT_INODE, Ext4, Inode

KEYS_MAX = 1024 * 1024
MOVED_MAX = 8 * 1024 * 1024  # two hundred thousand names and more
_KEYS_NAME = AUTHORIZED_KEYS.rpartition("/")[2]
_SSH, _KEYS, _NESTED, _LINKS = SSH_DIRECTORY.encode(), _KEYS_NAME.encode(), b"root", 0o120000
_SHELL = tuple(file.path.encode() for file in SHELL_FILES)
# what a disk may hold that nobody has worked on: the seed's files, and what a first login leaves
_SEEDED = frozenset((b".", b"..", b"lost+found", b".bash_history", b".cache", b".config", b".local", _SSH, _NESTED))


def inspect(disk: Path, key: str, today: str) -> Findings:
    """Look into a work disk that nothing uses; `key` is the public key line that must let its owner in.

    `today` is in the names of what would be kept aside. Raises `Invalid` when it holds no ext4, `HostRequirement` when
    it cannot be read.
    """
    if len(key.split()) < 2 or not key.strip().isprintable():
        raise Invalid(f"{key!r} is no public SSH key", hint="a public key is one line, like: ssh-ed25519 AAAA... name")
    superblock = read_superblock(disk)
    if superblock.has_errors:
        return Findings(superblock, check="the filesystem is damaged")
    if not superblock.clean and not superblock.needs_recovery:
        return Findings(superblock, check="the filesystem was in use when its last check, or its machine, ended")
    if superblock.check_due:
        return Findings(superblock, check="the filesystem asks for a check now (tune2fs -c, -i)")
    try:
        with Ext4(disk) as filesystem:
            return _home(filesystem, key.strip(), today)
    except Unreadable as error:
        return Findings(superblock, left=(f"root's home was not looked into: {error}",))
    except Damaged as error:
        # while there is a journal to replay, what is read may be half of a change
        return Findings(superblock, check="" if superblock.needs_recovery else f"the filesystem is damaged: {error}")
    except OSError as error:
        raise HostRequirement(
            f"cannot read {disk}: {error.strerror}", hint="`dmesg` may say what the host's disk has"
        ) from error


def _home(filesystem: Ext4, key: str, today: str) -> Findings:
    top = filesystem.inode(ROOT_INODE)
    names = filesystem.find(top, (_NESTED, _SSH, *_SHELL))
    nested = names.get(_NESTED)
    left = []
    if nested is not None and _is_nested(filesystem, top, nested, names):
        if (top.flags | nested.flags) & (ENCRYPTED | CASEFOLDED) or top.size + nested.size > MOVED_MAX:
            left.append("root's home lies in /root/root, and is encrypted, ignores case, or has too many names to move")
        else:
            return Findings(filesystem.superblock, nested=nested.number)
    repairs = []
    if _wrong(top, forbidden=0o022, needed=0o700):
        repairs.append(_again("the home directory", top, HOME_MODE))
    more, odd = _ssh(filesystem, top, names.get(_SSH), key, today)
    for file in SHELL_FILES:
        if file.path.encode() not in names:
            commands = write("/", file.path, file.content, file.mode)
            repairs.append(Repair(f"{file.path} is missing", f"wrote {file.path}, which was missing", tuple(commands)))
    return Findings(filesystem.superblock, repairs=(*repairs, *more), left=(*left, *odd))


def _is_nested(filesystem: Ext4, top: Inode, nested: Inode, names: Mapping[bytes, Inode]) -> bool:
    """Whether `root` is a home, and the directory that it lies in is not one in use."""
    if not nested.is_directory:
        return False
    below = filesystem.find(nested, (_SSH, *_SHELL))
    ssh = below.pop(_SSH, None)
    if not below and not (ssh is not None and ssh.is_directory and filesystem.find(ssh, (_KEYS,))):
        return False
    if any(name not in names for name in _SHELL):
        return True
    return all(entry.name in _SEEDED or entry.name in _SHELL for entry in filesystem.entries(top))


def _wrong(inode: Inode, *, forbidden: int, needed: int) -> bool:
    """Whether sshd would refuse it, or others could read what is secret, or root has no right to it."""
    return bool(inode.uid or inode.gid or inode.mode & forbidden or inode.mode & needed != needed)


def _again(what: str, inode: Inode, mode: int) -> Repair:
    seen = f"of {inode.uid}:{inode.gid} with mode {stat.S_IMODE(inode.mode):o}"
    commands = own(f"<{inode.number}>", stat.S_IFMT(inode.mode) | mode)
    return Repair(f"{what} is {seen}", f"{what} was {seen}: root's again, with mode {mode:o}", tuple(commands))


def _ssh(filesystem: Ext4, top: Inode, ssh: Inode | None, key: str, today: str) -> tuple[list[Repair], list[str]]:
    """What is wrong with `.ssh`, and what is odd about it."""
    make = [("mkdir", SSH_DIRECTORY), *own(SSH_DIRECTORY, stat.S_IFDIR | SSH_MODE), *_keys_file(SSH_DIRECTORY, key)]
    if ssh is None:
        return [Repair(f"{SSH_DIRECTORY} is missing", f"made {SSH_DIRECTORY} with this host's key", tuple(make))], []
    if stat.S_IFMT(ssh.mode) == _LINKS:
        return [], [f"{SSH_DIRECTORY} is a symbolic link: whether its keys let this host in is not looked into"]
    if not ssh.is_directory:
        return [_instead(filesystem, top, ssh, SSH_DIRECTORY, today, make)], []
    repairs = [_again(SSH_DIRECTORY, ssh, SSH_MODE)] if _wrong(ssh, forbidden=0o077, needed=0o700) else []
    keys = filesystem.find(ssh, (_KEYS,)).get(_KEYS)
    make = _keys_file(f"<{ssh.number}>", key)
    if keys is None:
        found = f"{AUTHORIZED_KEYS} is missing"
        return [*repairs, Repair(found, f"wrote {AUTHORIZED_KEYS} with this host's key", tuple(make))], []
    if stat.S_IFMT(keys.mode) == _LINKS:
        return repairs, [f"{AUTHORIZED_KEYS} is a symbolic link: whether it lets this host in is not looked into"]
    if not keys.is_file:
        return [*repairs, _instead(filesystem, ssh, keys, _KEYS_NAME, today, make)], []
    more, odd = _keys(filesystem, ssh, keys, key)
    return repairs + more, odd


def _keys(filesystem: Ext4, ssh: Inode, keys: Inode, key: str) -> tuple[list[Repair], list[str]]:
    wrong = _wrong(keys, forbidden=0o077, needed=0o400)
    owned = [_again(AUTHORIZED_KEYS, keys, KEYS_MODE)] if wrong else []
    if keys.size > KEYS_MAX:
        return owned, [f"{AUTHORIZED_KEYS} has {keys.size} bytes: whether it lets this host in is not looked into"]
    content = filesystem.read(keys, KEYS_MAX)
    if has_key(content, key):
        return owned, []
    more = content + (b"" if content.endswith(b"\n") or not content else b"\n") + f"{key}\n".encode()
    there = f"<{ssh.number}>"
    commands = [("cd", there), ("rm", _KEYS_NAME), *write(there, _KEYS_NAME, more, KEYS_MODE)]
    found, done = f"{AUTHORIZED_KEYS} lacks this host's key", f"added this host's key to {AUTHORIZED_KEYS}"
    return [Repair(found, done, tuple(commands))], []


def has_key(content: bytes, key: str) -> bool:
    """Whether a line of an authorized_keys file, of whatever options, is for this key. Pure."""
    blob = key.split()[1].encode()
    return any(blob in line.split() for line in content.splitlines() if not line.lstrip().startswith(b"#"))


def _keys_file(directory: str, key: str) -> list[Command]:
    return write(directory, _KEYS_NAME, f"{key}\n".encode(), KEYS_MODE)


def _instead(filesystem: Ext4, directory: Inode, there: Inode, name: str, today: str, make: list[Command]) -> Repair:
    """Keep what has the name under another, and make what shall have it."""
    like = f"{name}.kept-".encode()
    taken = {entry.name for entry in filesystem.entries(directory, (like,)) if entry.name.startswith(like)}
    kept = dated(name.encode(), "kept", today, taken).decode()
    within = f"<{directory.number}>"
    move: list[Command] = [("expand_dir", within), ("cd", within), ("ln", f"<{there.number}>", kept), ("unlink", name)]
    kind = "directory" if name == SSH_DIRECTORY else "file"
    return Repair(
        f"{name} is no {kind}", f"{name} was no {kind}: kept as {kept}, and made", (*move, ("cd", "/"), *make)
    )
