"""Everything of banger's that an image for the guest holds: the agent, units, scripts, settings.

Paths are relative to the guest's root. The image builder writes the files, makes the links, and lets the
guest's own Python compile `COMPILE`.
"""

from importlib.resources import files

from banger.guest.units import ENABLED, MASKED

LIBRARY = "usr/lib/banger"
COMPILE = (LIBRARY,)  # directories of Python to compile inside the image: bytecode halves the agent's start

_EMPTY = ("banger", "banger/guest")  # packages whose own file is empty in the guest
_UNITS = "etc/systemd/system"
_STATIC = {
    "banger-setup": f"{LIBRARY}/banger-setup",
    "banger-agent.service": f"{_UNITS}/banger-agent.service",
    "banger-setup.service": f"{_UNITS}/banger-setup.service",
    "banger-console.service": f"{_UNITS}/banger-console.service",
    "banger-hostkey.service": f"{_UNITS}/banger-hostkey.service",
    "ssh.service.conf": f"{_UNITS}/ssh.service.d/banger.conf",
    "sshd.conf": "etc/ssh/sshd_config.d/banger.conf",
    "journald.conf": "etc/systemd/journald.conf.d/banger.conf",
}
_SETTINGS = {
    "etc/hostname": b"banger\n",
    "etc/hosts": b"127.0.0.1\tlocalhost\n127.0.1.1\tbanger\n::1\tlocalhost ip6-localhost ip6-loopback\n",
    "etc/fstab": b"# The initramfs has mounted the root: nothing is left to mount or check.\n",
}


def agent_files() -> dict[str, tuple[bytes, int]]:
    """Guest path -> (content, mode) of every file to install."""
    return _agent() | _static() | {path: (content, 0o644) for path, content in _SETTINGS.items()}


def links() -> dict[str, str]:
    """Guest path -> target of every symbolic link to make."""
    made = {
        f"{_UNITS}/default.target": "/usr/lib/systemd/system/multi-user.target",
        # Without udev's naming the interface stays eth0, whatever bus it is on, and keeps the address it was given.
        "etc/systemd/network/99-default.link": "/dev/null",
    }
    made |= {f"{_UNITS}/{unit}": "/dev/null" for unit in MASKED}
    return made | {f"{_UNITS}/{target}.wants/{unit}": place for unit, (target, place) in ENABLED.items()}


def _agent() -> dict[str, tuple[bytes, int]]:
    """The agent's modules, in a tree of the same shape as here; packages above it are empty in the guest."""
    found: dict[str, tuple[bytes, int]] = {}
    for package in _EMPTY:
        found[f"{LIBRARY}/{package}/__init__.py"] = (b"", 0o644)
    guest = files("banger.guest")
    found[f"{LIBRARY}/banger/guest/protocol.py"] = (guest.joinpath("protocol.py").read_bytes(), 0o644)
    for package in ("agent", "tree"):
        for entry in guest.joinpath(package).iterdir():
            if entry.name.endswith(".py"):
                found[f"{LIBRARY}/banger/guest/{package}/{entry.name}"] = (entry.read_bytes(), 0o644)
    return found


def _static() -> dict[str, tuple[bytes, int]]:
    folder = files("banger.guest").joinpath("files")
    return {
        path: (folder.joinpath(name).read_bytes(), 0o755 if name == "banger-setup" else 0o644)
        for name, path in _STATIC.items()
    }
