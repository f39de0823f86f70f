"""POST /shutdown: asks the init system to power off or reboot."""

import os

from banger.guest.agent.http1 import Refused, document
from banger.guest.agent.signals import SIGRTMIN

# systemd(1), "Signals": start poweroff.target, start reboot.target.
_SYSTEMD = {"poweroff": SIGRTMIN + 4, "reboot": SIGRTMIN + 5}
_FOLDERS = ("/sbin/", "/usr/sbin/", "/bin/", "/usr/bin/")


def parse_mode(body: bytes) -> str:
    """The mode in a request body. Raises `Refused` 400."""
    mode = document(body, frozenset({"mode"})).get("mode")
    if not isinstance(mode, str) or mode not in _SYSTEMD:
        raise Refused(400, 'mode is "poweroff" or "reboot"')
    return mode


def ask_init(mode: str, program: "str | None" = None) -> None:
    """Write everything out and start the shutdown; `program` MODE is run in place of init's own means."""
    os.sync()
    if program is not None:
        _run([program, mode])
    elif os.path.isdir("/run/systemd/system"):
        os.kill(1, _SYSTEMD[mode])
    else:
        _run([next((path for path in (f + mode for f in _FOLDERS) if os.path.exists(path)), "/sbin/" + mode)])


def _run(argv: "list[str]") -> None:
    pid = os.posix_spawn(argv[0], argv, {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"})
    os.waitpid(pid, 0)
