"""The runtime bundle on disk: made and kept up to date when the daemon starts."""

import asyncio
import hashlib
import logging
import secrets
import shutil
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path

import msgspec

from banger.config import Settings
from banger.guest.bundle import agent_tree
from banger.guest.protocol import AGENT_VERSION
from banger.model.bundle import AGENT, BUNDLE_FORMAT, LEGACY_AGENT, SSH_KEY, Bundle
from banger.model.errors import Conflict, HostRequirement, Invalid
from banger.model.keys import PublicKey
from banger.model.vm import WantedEngine
from banger.paths import BundlePaths, Paths
from banger.service.keys import make_pair, public_half, read_public
from banger.system.files import in_thread, sync_path, write_new
from banger.system.locks import FileLock

_MAX_METADATA = 64 * 1024
_MAX_FILES = 500
_MAX_BYTES = 8 * 1024 * 1024
_ENTRY = "banger/guest/agent/__main__.py"
log = logging.getLogger(__name__)


class RuntimeBundle:
    """This person's bundle. `open` comes first; all of it raises `Invalid` naming what is wrong and where."""

    def __init__(self, paths: Paths, settings: Settings) -> None:
        self._where = BundlePaths(Path(settings.bundle_dir) if settings.bundle_dir else paths.bundle)
        self._agent_path = settings.agent_path
        self._link = paths.ssh_key
        self._record = Bundle()
        self._making = asyncio.Lock()

    async def open(self) -> None:
        """Make the bundle or bring it up to date. Raises `Conflict` while another daemon does, `HostRequirement`."""
        await in_thread(self._open)

    def _open(self) -> None:
        where = self._where
        try:
            where.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            lock = FileLock(where.lock)
            if not lock.try_acquire():
                raise Conflict(f"another daemon is updating {where.directory}", hint="run the command again")
            try:
                self._record = _read(where)
                for name in (self._record.agent, self._record.ssh_key, self._record.kernel):
                    if name is not None and name != AGENT:  # our agent is put right below, whatever is in its place
                        self._inside(name)
                if self._record.agent == AGENT:
                    self._refresh_agent()
                self._adopt_key()
                self._note_key()
            finally:
                lock.release()
        except OSError as error:
            raise HostRequirement(
                f"the bundle in {where.directory} cannot be written: {error.strerror}",
                hint="check its disk and permissions, or set bundle_dir in config.toml",
            ) from error

    @property
    def engine(self) -> WantedEngine:
        """What runs a VM that asks for no engine; `auto` when the bundle names none."""
        return self._record.engine or "auto"

    def agent(self) -> dict[str, bytes]:
        """The agent for the next image: path below /usr/lib/banger -> content."""
        if self._agent_path:
            return read_tree(Path(self._agent_path), "agent_path in config.toml")
        return read_tree(self._inside(self._record.agent), f"`agent` in {self._where.metadata}")

    async def key(self) -> PublicKey:
        """The key that guests let in; made at the first call. Raises `HostRequirement`, `CommandFailed`."""
        async with self._making:
            key = self._inside(self._record.ssh_key)
            if self._record.ssh_key != SSH_KEY and not key.exists():
                raise Invalid(f"{self._where.metadata}: there is no SSH key {key}", hint="name one that is there")
            await make_pair(key)
            await in_thread(self._note_key)
            return read_public(public_half(key))

    def fingerprint(self) -> str:
        """Of the key that guests let in, as last seen; empty before the first."""
        return self._record.ssh_fingerprint or ""

    async def public_key(self) -> str:
        """The line of `key`."""
        return (await self.key()).line

    def _inside(self, name: str) -> Path:
        """Where a path of bundle.json leads: a relative one not out of the bundle, by links neither."""
        directory = self._where.directory.resolve()
        path = (directory / name).resolve()
        if not Path(name).is_absolute() and (path == directory or not path.is_relative_to(directory)):
            raise Invalid(
                f"{self._where.metadata}: {name!r} leads out of the bundle", hint="give an absolute path if you mean it"
            )
        return path

    def _refresh_agent(self) -> None:
        """Replace the copy of our agent when it is not the one that this banger has."""
        ours, place = agent_tree(), self._where.agent
        digest = _digest(ours)
        try:
            sound = not place.is_symlink() and read_tree(place, "") == ours
        except Invalid:
            sound = False
        if not sound:
            if self._record.agent_sha256 == digest:
                log.warning("%s was changed or damaged, and is replaced; agent_path names an agent of one's own", place)
            _replace_tree(place, ours)
        self._save(msgspec.structs.replace(self._record, agent_version=AGENT_VERSION, agent_sha256=digest))

    def _adopt_key(self) -> None:
        """Move the pair that older versions kept beside the bundle into it, once."""
        old, new = self._link, self._inside(self._record.ssh_key)
        if old.is_symlink() or not old.is_file() or old.resolve() == new:
            return
        if new.exists():
            kept = old.with_name(f"{old.name}.old")
            log.warning("the SSH key %s is kept as %s: the bundle has another one, %s", old, kept, new)
            old.rename(kept)
            if public_half(old).exists():
                public_half(old).rename(public_half(kept))
            return
        new.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        # the private half last: while it is where it was, this is done again
        if public_half(old).exists():
            _write(public_half(new), public_half(old).read_bytes(), 0o644)
        _write(new, old.read_bytes(), 0o600)
        old.unlink()
        public_half(old).unlink(missing_ok=True)

    def _note_key(self) -> None:
        """Record the key's fingerprint, and let `Paths.ssh_key` lead to it."""
        key = self._inside(self._record.ssh_key)
        if not key.exists() or not public_half(key).exists():
            return
        self._save(msgspec.structs.replace(self._record, ssh_fingerprint=read_public(public_half(key)).fingerprint))
        for link, target in ((self._link, key), (public_half(self._link), public_half(key))):
            if link.is_symlink() and link.readlink() == target:
                continue
            link.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            fresh = _fresh(link)
            fresh.symlink_to(target)
            fresh.rename(link)

    def _save(self, record: Bundle) -> None:
        if record != self._record or not self._where.metadata.exists():
            _write(self._where.metadata, _document(record), 0o644)
        self._record = record


def _read(where: BundlePaths) -> Bundle:
    """What bundle.json says; one that is missing says nothing. Its older name of the agent is told and replaced."""
    try:
        with where.metadata.open("rb") as file:
            document = msgspec.json.decode(file.read(_MAX_METADATA), type=dict[str, object])
    except FileNotFoundError:
        return Bundle()
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _damaged(where, str(error)) from error
    if legacy := document.pop(LEGACY_AGENT, None):
        if document.get("agent", legacy) != legacy:
            raise _damaged(where, f"{LEGACY_AGENT!r} is the older name of 'agent', and they differ")
        log.warning("%s: %r is called 'agent' now", where.metadata, LEGACY_AGENT)
        document["agent"] = legacy
    for name in document:
        if name not in Bundle.__struct_fields__:
            near = get_close_matches(name, Bundle.__struct_fields__, n=1)
            raise _damaged(where, f"there is no {name!r}" + (f", did you mean {near[0]!r}?" if near else ""))
    try:
        record = msgspec.convert(document, type=Bundle)
    except msgspec.ValidationError as error:
        raise _damaged(where, str(error)) from error
    if record.format != BUNDLE_FORMAT:
        raise _damaged(where, f"it has format {record.format}, and this banger knows {BUNDLE_FORMAT}")
    if legacy:
        _write(where.metadata, _document(record), 0o644)
    return record


def _document(record: Bundle) -> bytes:
    return msgspec.json.format(msgspec.json.encode(record)) + b"\n"


def _damaged(where: BundlePaths, what: str) -> Invalid:
    return Invalid(
        f"cannot use {where.metadata}: {what}", hint="correct it, or remove it: it is made again, and the SSH key stays"
    )


def read_tree(directory: Path, named_by: str) -> dict[str, bytes]:
    """The Python of an agent, which must be plain files within bounds; compiled Python is left out."""
    found: dict[str, bytes] = {}
    size = 0
    for path in sorted(directory.rglob("*")):
        inner = path.relative_to(directory)
        name = str(inner)
        if path.is_symlink() or not (path.is_dir() or path.is_file()):
            raise _no_agent(directory, named_by, f"{name} is not a plain file")
        if path.is_dir() or "__pycache__" in inner.parts:
            continue
        size += path.stat().st_size
        if path.suffix != ".py" or len(found) >= _MAX_FILES or size > _MAX_BYTES:
            raise _no_agent(directory, named_by, f"{name} is not Python, or it is too much")
        found[name] = path.read_bytes()
    if _ENTRY not in found:
        raise _no_agent(directory, named_by, f"it has no {_ENTRY}")
    return found


def _no_agent(directory: Path, named_by: str, why: str) -> Invalid:
    return Invalid(
        f"{directory} is no agent for a guest: {why}",
        hint=f"{named_by} names it; docs/bundle.md says what it must hold",
    )


def _digest(tree: Mapping[str, bytes]) -> str:
    """SHA-256 in hex over names, lengths and contents."""
    digest = hashlib.sha256()
    for name in sorted(tree):
        digest.update(f"{name}\0{len(tree[name])}\0".encode() + tree[name])
    return digest.hexdigest()


def _replace_tree(place: Path, tree: Mapping[str, bytes]) -> None:
    """Write the tree beside `place`, then give it the name. What a crash leaves is made good at the next start."""
    for left in place.parent.glob(f".{place.name}.*"):
        shutil.rmtree(left)
    fresh, doomed = _fresh(place), _fresh(place)
    for name, content in tree.items():
        path = fresh / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_new(path, content)
        sync_path(path)
    if place.exists() or place.is_symlink():
        place.rename(doomed)
    fresh.rename(place)
    sync_path(place.parent)
    if doomed.is_symlink() or doomed.is_file():
        doomed.unlink()
    else:
        shutil.rmtree(doomed, ignore_errors=True)


def _write(path: Path, content: bytes, mode: int) -> None:
    """Replace a file at once and durably."""
    fresh = _fresh(path)
    write_new(fresh, content, mode)
    sync_path(fresh)
    fresh.rename(path)
    sync_path(path.parent)


def _fresh(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(6)}")
