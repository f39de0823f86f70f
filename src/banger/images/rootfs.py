"""A root tree before it becomes a filesystem: seeding, cleaning, its package list. Nothing here runs guest code."""

import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from banger.images.manifest import dpkg_packages
from banger.model.errors import Invalid
from banger.system.files import path_in_root, write_new

_EMPTIED = ("var/lib/apt/lists", "var/cache/apt", "var/log/apt", "tmp", "run", "var/tmp", "var/cache/debconf")
_REMOVED = ("etc/resolv.conf", "etc/machine-id", "etc/hostname", "var/lib/dbus/machine-id", "var/log/dpkg.log",
            "var/log/bootstrap.log", "var/log/alternatives.log",
            "var/cache/ldconfig/aux-cache", "etc/.pwd.lock")  # fmt: skip
_FSTAB = b"# The kernel's command line names the root; there is nothing else to mount.\n"
_NEEDED = ("sbin/init", "usr/sbin/sshd", "usr/bin/python3", "usr/bin/bash", "usr/bin/dbus-daemon")


@dataclass(frozen=True)
class Seed:
    """What the caller puts into a root.

    files         absolute guest path -> content and mode; replaces what is there; owned by root
    symlinks      absolute guest path -> target, not resolved; replaces what is there
    compile_dirs  guest directories whose Python is compiled by the guest's own interpreter
    """

    files: Mapping[str, tuple[bytes, int]] = field(default_factory=dict)
    symlinks: Mapping[str, str] = field(default_factory=dict)
    compile_dirs: tuple[str, ...] = ()


def clean(root: Path) -> None:
    """Take out what belongs to the host or to one machine only, and what can be fetched again.

    Also the guest's wish for the locales of those who log in: it has none but C.UTF-8, and perl complains each time.
    """
    for name in _EMPTIED:
        _empty(root / name)
    for name in _REMOVED:
        (root / name).unlink(missing_ok=True)
    for key in (root / "etc/ssh").glob("ssh_host_*"):
        key.unlink()
    write_new(root / "etc/machine-id", b"", 0o444)
    write_new(root / "etc/hostname", b"banger\n")
    _replace(root / "etc/fstab")
    write_new(root / "etc/fstab", _FSTAB)
    _lock_root(root / "etc/shadow")
    _accept_no_locales(root / "etc/ssh/sshd_config")


def _empty(directory: Path) -> None:
    if directory.is_symlink() or not directory.is_dir():
        return
    for entry in directory.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def _lock_root(shadow: Path) -> None:
    """No password fits `*`; keys still do (shadow(5))."""
    shadow.write_text(re.sub(r"^root:[^:]*:", "root:*:", shadow.read_text(), flags=re.MULTILINE))


def _accept_no_locales(config: Path) -> None:
    if config.is_file() and not config.is_symlink():
        config.write_text(re.sub(r"^(AcceptEnv LANG LC_\*)$", r"#\1", config.read_text(), flags=re.MULTILINE))


def _replace(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        raise Invalid(f"{path.name} is a directory in the root and cannot be replaced")
    path.unlink(missing_ok=True)


def plant(root: Path, seed: Seed) -> None:
    """Write the seed. Raises `Invalid` for a path that is not absolute, holds `..`, or names a directory."""
    for name, (content, mode) in seed.files.items():
        path = _place(root, name)
        write_new(path, content, mode)
    for name, target in seed.symlinks.items():
        _place(root, name).symlink_to(target)


def _place(root: Path, name: str) -> Path:
    path = path_in_root(root, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    _replace(path)
    return path


def installed_packages(root: Path) -> list[dict[str, str]]:
    """Name, version and architecture of every installed package, sorted, from dpkg's status file (dpkg(1))."""
    return dpkg_packages((root / "var/lib/dpkg/status").read_text(errors="replace"))


def check_root(root: Path) -> None:
    """Raise `Invalid` naming the first thing that a root for banger must have and this one has not."""
    for name in _NEEDED:
        path = path_in_root(root, f"/{name}")
        if not path.exists() and not path.is_symlink():
            raise Invalid(f"the new root has no /{name}", hint="add the package that brings it")
    if (root / "etc/machine-id").read_bytes():
        raise Invalid("the new root has a machine id of its own", hint="leave /etc/machine-id out of the seed")
