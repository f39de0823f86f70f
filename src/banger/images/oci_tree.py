"""A tree that came out of somebody's image, made into the root of a machine, with nothing of it running here.

Links in it lead anywhere, so no path in it is used but through `path_in_root`.
"""

import contextlib
import json
import os
import re
import shlex
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from banger.images.oci_layout import Chosen, Config
from banger.images.rootfs import Seed, plant
from banger.model.errors import Invalid
from banger.model.text import harmless
from banger.system.files import path_in_root, write_new

ENVIRONMENT, RECORD = "/etc/profile.d/zz-image.sh", "/usr/share/banger/image-config.json"
POLICY = "/usr/sbin/policy-rc.d"
PYTHON_LEAST = (3, 9)
_MAX_FILE = 32 * 1024 * 1024
_MAX_LINKS = 40
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_PYTHON = re.compile(r"python(\d)\.(\d+)")
_SYSTEMD = ("/usr/lib/systemd/systemd", "/lib/systemd/systemd")
# what the kernel, the boot and our sandbox mount on, and what packages are installed below
_DIRECTORIES = ("bin", "dev", "etc", "proc", "root", "run", "sbin", "sys", "tmp", "usr", "var")
_REAL = ("dev", "etc", "proc", "root", "run", "sys", "tmp", "usr", "var")
# a login sets these, and an image has them for the one program that it was made for
_NOT_OURS = {"HOME", "USER", "LOGNAME", "SHELL", "HOSTNAME", "TERM", "PWD", "OLDPWD", "SHLVL", "_"}
_REMOVED = ("/etc/resolv.conf", "/etc/machine-id", "/var/lib/dbus/machine-id", "/.dockerenv", "/etc/.pwd.lock",
            "/var/cache/ldconfig/aux-cache")  # fmt: skip
_EMPTIED = ("/tmp", "/run", "/var/tmp", "/var/lib/apt/lists", "/var/cache/apt/archives")


class Release(NamedTuple):
    """What /etc/os-release says: `debian`, `12`, and what the distribution calls itself."""

    id: str
    version: str
    name: str


class Tree:
    """The tree at `root`. Nothing may change it but this meanwhile. Every method raises `Invalid` for a tree in which
    something that must be a directory is none, or whose links lead in circles.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    @contextlib.contextmanager
    def _at(self, path: str) -> Iterator[Path]:
        try:
            yield path_in_root(self.root, path)
        except (OSError, RecursionError) as error:
            raise Invalid(f"{harmless(path)} in the image cannot be used: {error}") from error

    def end_of(self, path: str) -> Path | None:
        """Where a path leads when links are followed to the end; None when nothing is there."""
        for _ in range(_MAX_LINKS):
            with self._at(path) as place:
                if not place.is_symlink():
                    return place if place.exists() else None
                target = str(place.readlink())
                path = target if target.startswith("/") else f"/{place.parent.relative_to(self.root)}/{target}"
                path = os.path.normpath(f"/{path}").replace("//", "/")
        raise Invalid(f"{harmless(path)} in the image is a link that leads in circles")

    def inside(self, place: Path) -> str:
        return f"/{place.relative_to(self.root)}"

    def read(self, path: str) -> bytes | None:
        """A regular file of at most 32 MiB; None when there is none."""
        place = self.end_of(path)
        if place is None or not stat.S_ISREG(place.lstat().st_mode):
            return None
        with place.open("rb") as file:
            return file.read(_MAX_FILE)

    def write(self, path: str, content: bytes, mode: int = 0o644) -> None:
        """A file of root's, in place of what is there."""
        self.remove(path)
        with self._at(path) as place:
            place.parent.mkdir(parents=True, exist_ok=True)
            write_new(place, content, mode)

    def remove(self, path: str) -> None:
        """Take away a file, a link, or a directory with all in it; absent is fine."""
        with self._at(path) as place:
            if place.is_dir() and not place.is_symlink():
                shutil.rmtree(place)
            else:
                place.unlink(missing_ok=True)

    def move_in(self, source: Path, path: str) -> None:
        """Put something of ours, on the same filesystem, in place of what is there."""
        self.remove(path)
        with self._at(path) as place:
            place.parent.mkdir(parents=True, exist_ok=True)
            source.rename(place)

    def empty(self, path: str) -> None:
        """Remove what is in a directory; if it is one."""
        with self._at(path) as place:
            if place.is_symlink() or not place.is_dir():
                return
            for entry in list(place.iterdir()):
                if entry.is_dir() and not entry.is_symlink():
                    shutil.rmtree(entry)
                else:
                    entry.unlink()

    def make_directories(self) -> None:
        """Those that every root has. Raises `Invalid` when one of them is a link or a file."""
        for name in _DIRECTORIES:
            place = self.root / name
            if not os.path.lexists(place):
                place.mkdir(mode={"root": 0o700, "tmp": 0o1777}.get(name, 0o755))
                place.chmod({"root": 0o700, "tmp": 0o1777}.get(name, 0o755))
            elif name in _REAL and (place.is_symlink() or not place.is_dir()):
                raise Invalid(f"/{name} in the image is no directory", hint="import the image of a whole system")

    def release(self) -> Release:
        """Empty words where nobody says."""
        text = (self.read("/etc/os-release") or b"").decode(errors="replace")
        found: dict[str, str] = {}
        for line in text.splitlines():
            name, _, value = line.partition("=")
            with contextlib.suppress(ValueError):
                found[name] = "".join(shlex.split(value))[:80]
        name = found.get("PRETTY_NAME") or found.get("ID") or "a system of no known name"
        return Release(*(harmless(word) for word in (found.get("ID", ""), found.get("VERSION_ID", ""), name)))

    def has_apt(self) -> bool:
        return self.read("/var/lib/dpkg/status") is not None and self.end_of("/usr/bin/apt-get") is not None

    def python(self) -> tuple[int, int] | None:
        """The version of /usr/bin/python3, told by its name, as nothing of the image is run."""
        place = self.end_of("/usr/bin/python3")
        found = _PYTHON.fullmatch(place.name) if place else None
        return (int(found[1]), int(found[2])) if found else None

    def missing(self) -> dict[str, str]:
        """What a machine of ours cannot do without and the tree has not, and why; by the Debian package that has it."""
        found = {}
        init = self.end_of("/sbin/init")
        if init is None or self.inside(init) not in _SYSTEMD:
            found["systemd-sysv"] = "systemd as /sbin/init"
        if (python := self.python()) is None:
            found["python3"] = "python3 in /usr/bin"
        elif python < PYTHON_LEAST:
            found["python3"] = f"python3 of {PYTHON_LEAST[0]}.{PYTHON_LEAST[1]} or newer ({python[0]}.{python[1]})"
        if self.end_of("/bin/sh") is None:
            found["dash"] = "a shell as /bin/sh"
        return found

    def wanted(self) -> dict[str, str]:
        """What a machine can do without, and what it cannot do then; by package."""
        programs = {
            "openssh-server": ("/usr/sbin/sshd", "no `vm ssh`"),
            "iproute2": ("/sbin/ip", "no network"),
            "dbus": ("/usr/bin/dbus-daemon", "no message bus"),
            "bash": ("/bin/bash", "no bash"),
        }
        return {package: f"{path}: {loss}" for package, (path, loss) in programs.items() if self.end_of(path) is None}

    def settle(self, seed: Seed) -> None:
        """Take out what is one machine's or a container's, and put in what makes a machine of ours."""
        for path in _REMOVED:
            self.remove(path)
        for path in _EMPTIED:
            self.empty(path)
        with self._at("/etc/ssh/x") as place:
            for key in list(place.parent.glob("ssh_host_*")) if place.parent.is_dir() else []:
                key.unlink()
        if (policy := self.read(POLICY)) is not None and _forbids_all(policy):
            self.remove(POLICY)
        self.write("/etc/machine-id", b"", 0o444)
        self._lock_root()
        try:
            plant(self.root, seed)
        except OSError as error:
            raise Invalid(f"banger's files cannot be put into the image: {error}") from error

    def _lock_root(self) -> None:
        """No password fits `*`; keys still do (shadow(5))."""
        text = (self.read("/etc/shadow") or b"root:*:19000:0:99999:7:::\n").decode(errors="surrogateescape")
        locked = re.sub(r"^root:[^:\n]*:", "root:*:", text, flags=re.MULTILINE)
        self.write("/etc/shadow", locked.encode(errors="surrogateescape"), 0o600)

    def keep_config(self, config: Config, chosen: Chosen) -> list[str]:
        """Put the variables into every login, the rest on record. What a person should know of it."""
        lines, names = _exports(config.env or [])
        notes = []
        if lines:
            text = "\n".join(["# variables of the image that this was imported from", *lines, ""])
            self.write(ENVIRONMENT, text.encode(errors="surrogateescape"))
            notes.append(f"logins get {', '.join(names[:10])}{', ...' if len(names) > 10 else ''} from {ENVIRONMENT}")
        record = {
            "image": chosen.name,
            "digest": chosen.digest,
            "entrypoint": config.entrypoint or [],
            "cmd": config.cmd or [],
            "working_dir": config.working_dir,
            "user": config.user,
            "exposed_ports": sorted(config.exposed_ports or {}),
            "volumes": sorted(config.volumes or {}),
            "labels": config.labels or {},
        }
        self.write(RECORD, json.dumps(record, indent=1).encode() + b"\n")
        told = {name: value for name, value in record.items() if value and name not in ("image", "digest", "labels")}
        for name, value in told.items():
            words = shlex.join(value) if isinstance(value, list) else str(value)
            notes.append(harmless(f"not kept by a machine: {name} {words}"))
        return notes


def _exports(env: list[str]) -> tuple[list[str], list[str]]:
    """Lines for a shell, and the names that they set."""
    found = {}
    for entry in env:
        name, equals, value = entry.partition("=")
        if equals and _NAME.fullmatch(name) and name not in _NOT_OURS and "\0" not in value:
            found[name] = f"export {name}={shlex.quote(value)}"
    return list(found.values()), list(found)


def _forbids_all(policy: bytes) -> bool:
    """Whether services may not be started, which is right in a container and wrong in a machine."""
    lines = [line.strip() for line in policy.decode(errors="replace").splitlines()]
    return [line for line in lines if line and not line.startswith("#")] == ["exit 101"]
