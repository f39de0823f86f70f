"""Everything of banger's that an image for the guest holds: the agent, units, scripts, settings.

Paths are relative to the guest's root. The image builder writes the files, makes the links, and lets the
guest's own Python compile `COMPILE`.
"""

from importlib.resources import files
from typing import Literal

from banger.guest import units

Init = Literal["systemd", "openrc", "runit"]

LIBRARY = "usr/lib/banger"
COMPILE = (LIBRARY,)  # directories of Python to compile inside the image: bytecode halves the agent's start

_EMPTY = ("banger", "banger/guest")  # packages whose own file is empty in the guest
_PACKAGES = ("agent", "tree")  # what host and guest both use, and the agent itself
# What every guest gets, below `files` here -> path in the guest; `units.FILES` has the rest for each init.
_COMMON = {
    "banger-setup": f"{LIBRARY}/banger-setup",
    "sshd.conf": "etc/ssh/sshd_config.d/banger.conf",
}
_SETTINGS = {
    "etc/default/locale": b"LANG=C.UTF-8\n",
    "etc/hostname": b"banger\n",
    "etc/hosts": b"127.0.0.1\tlocalhost\n127.0.1.1\tbanger\n::1\tlocalhost ip6-localhost ip6-loopback\n",
    "etc/fstab": b"# The initramfs has mounted the root: nothing is left to mount or check.\n",
}


def agent_files(init: Init = "systemd") -> dict[str, tuple[bytes, int]]:
    """Guest path -> (content, mode) of every file to install."""
    settings = {path: (content, 0o644) for path, content in _SETTINGS.items()}
    return _agent() | _static(_COMMON | units.FILES[init]) | settings


def agent_tree() -> dict[str, bytes]:
    """Path below `LIBRARY` -> content: the agent alone, as the runtime bundle holds it."""
    return {path.removeprefix(f"{LIBRARY}/"): content for path, (content, _) in _agent().items()}


def links(init: Init = "systemd") -> dict[str, str]:
    """Guest path -> target of every symbolic link to make."""
    return dict(units.LINKS[init])


def _agent() -> dict[str, tuple[bytes, int]]:
    """The agent's modules, in a tree of the same shape as here; packages above it are empty in the guest."""
    found: dict[str, tuple[bytes, int]] = {}
    for package in _EMPTY:
        found[f"{LIBRARY}/{package}/__init__.py"] = (b"", 0o644)
    guest = files("banger.guest")
    found[f"{LIBRARY}/banger/guest/protocol.py"] = (guest.joinpath("protocol.py").read_bytes(), 0o644)
    for package in _PACKAGES:
        for entry in guest.joinpath(package).iterdir():
            if entry.name.endswith(".py"):
                found[f"{LIBRARY}/banger/guest/{package}/{entry.name}"] = (entry.read_bytes(), 0o644)
    return found


def _static(paths: dict[str, str]) -> dict[str, tuple[bytes, int]]:
    folder = files("banger.guest").joinpath("files")
    contents = {path: folder.joinpath(name).read_bytes() for name, path in paths.items()}
    return {path: (content, 0o755 if content.startswith(b"#!") else 0o644) for path, content in contents.items()}
