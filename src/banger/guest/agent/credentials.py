"""POST /opencode: the server's password into a file of root's, then the service is started through init."""

import os

from banger.guest.agent.health import init_kind, service_state
from banger.guest.agent.http1 import Refused, Request, document
from banger.guest.agent.programs import ProgramFailed, run
from banger.guest.agent.rootfs import read_all, write_whole

SERVICE = "opencode"
FOLDER = "/run/banger"
FILE = FOLDER + "/opencode.env"
MAX_PASSWORD = 256
START_SECONDS = 5.0  # for init to say no; a start that takes longer goes on by itself

# The file is read by systemd and by sh: these mean themselves to both.
_SAFE = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._~-")


def give(request: Request, root: str = "") -> None:
    """Write the password and start the service. Raises `Refused` 400, 409 without the service, 500."""
    password = document(request.body, frozenset({"password"})).get("password")
    if not isinstance(password, str) or not 0 < len(password) <= MAX_PASSWORD or not set(password) <= _SAFE:
        raise Refused(400, f"password is 1 to {MAX_PASSWORD} letters, digits and . _ ~ -")
    state = service_state((SERVICE,), root)
    if state == "absent":
        raise Refused(409, "this image has no opencode service")
    line = f"OPENCODE_SERVER_PASSWORD={password}\n".encode()
    new = read_all(root + FILE, 4096) != line
    try:
        if new:
            _write(root, line)
        # one that runs with another password, as after a snapshot was restored, must read the new one
        run(_argv(init_kind(root), "restart" if new and state == "running" else "start"), START_SECONDS, root=root)
    except OSError as error:
        raise Refused(500, f"{FILE}: {error.strerror}") from None
    except ProgramFailed as error:
        raise Refused(500, str(error)) from None


def _write(root: str, line: bytes) -> None:
    os.makedirs(root + FOLDER, mode=0o700, exist_ok=True)
    os.chmod(root + FOLDER, 0o700)
    write_whole(root + FILE, line, 0o600)


def _argv(kind: str, verb: str) -> "list[str]":
    """The command that asks init for it."""
    if kind == "systemd":
        return ["systemctl", "--no-block", verb, SERVICE + ".service"]
    if kind == "openrc":
        return ["rc-service", SERVICE, verb]
    # `up` and `restart` only tell runsv(8) with no wait; `start` would wait for seven seconds
    return ["sv", "up" if verb == "start" else "restart", "/etc/sv/" + SERVICE]
