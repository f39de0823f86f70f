"""The service `opencode` of an image that has the program: files and links for its init system.

It does not start at boot. The agent writes /run/banger/opencode.env when the daemon gives it the password, and asks
init to start the service. Paths are relative to the guest's root, as in `banger.guest.bundle`.
"""

from importlib.resources import files

from banger.model.errors import Invalid

ENVIRONMENT = "run/banger/opencode.env"
# init -> path -> (file of ours, mode)
_FILES = {
    "systemd": {"etc/systemd/system/opencode.service": ("opencode.service", 0o644)},
    "openrc": {
        "etc/init.d/opencode": ("opencode.openrc", 0o755),
        "usr/lib/banger/opencode-run": ("opencode-run", 0o755),
    },
    "runit": {
        "etc/sv/opencode/run": ("opencode-run", 0o755),
        "etc/sv/opencode/log/run": ("opencode.log", 0o755),
    },
}
_LINKS = {
    "runit": {
        "etc/runit/runsvdir/default/opencode": "/etc/sv/opencode",
        "etc/sv/opencode/supervise": "/run/runit/supervise.opencode",
        "etc/sv/opencode/log/supervise": "/run/runit/supervise.opencode-log",
    }
}


def opencode_files(init: str = "systemd") -> dict[str, tuple[bytes, int]]:
    """Guest path -> (content, mode). `init` is systemd, openrc or runit; raises `Invalid` for another."""
    if init not in _FILES:
        raise Invalid(f"there is no opencode service for the init system {init!r}")
    folder = files("banger.guest").joinpath("files")
    found = {path: (folder.joinpath(name).read_bytes(), mode) for path, (name, mode) in _FILES[init].items()}
    if init == "runit":
        found["etc/sv/opencode/down"] = (b"", 0o644)  # supervised, and down until `sv up opencode`
    return found


def opencode_links(init: str = "systemd") -> dict[str, str]:
    """Guest path -> target of every symbolic link to make."""
    return dict(_LINKS.get(init, {}))
