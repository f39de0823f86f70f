"""Typing on a VM's serial console: the named pipe that its engine reads."""

import os
import stat
from pathlib import Path

from banger.model.documents import VmDocument
from banger.model.errors import Conflict, Unsupported
from banger.paths import Paths

UNSENT_MAX = 65536


class Keyboard:
    """Writes to the pipe and never waits for its reader."""

    def __init__(self, path: Path) -> None:
        """Raises `OSError`: ENXIO when no engine reads."""
        self._pipe = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
        self._unsent = bytearray()
        if not stat.S_ISFIFO(os.fstat(self._pipe).st_mode):
            os.close(self._pipe)
            raise FileNotFoundError(f"{path} is no pipe")

    def fileno(self) -> int:
        return self._pipe

    @property
    def unsent(self) -> int:
        """How many bytes wait for the guest."""
        return len(self._unsent)

    def type(self, data: bytes) -> bool:
        """Whether the guest takes them, now or soon; otherwise they are dropped."""
        if len(self._unsent) + len(data) > UNSENT_MAX:
            return False
        self._unsent += data
        self.flush()
        return True

    def flush(self) -> None:
        """Pass on as much as the pipe takes."""
        try:
            while self._unsent:
                del self._unsent[: os.write(self._pipe, self._unsent)]
        except BlockingIOError:
            pass
        except BrokenPipeError:
            # the engine has ended, which its own descriptor tells
            self._unsent.clear()

    def close(self) -> None:
        os.close(self._pipe)


def open_keyboard(paths: Paths, vm: VmDocument) -> Keyboard:
    """Raises `Conflict` when the VM does not run, `Unsupported` when its console takes no input."""
    if vm["engine_pid"] is None:
        raise Conflict(f"{vm['name']} is {vm['state']}, not running", hint=f"banger vm start {vm['name']}")
    if vm["jailed"]:
        raise Unsupported("its engine runs in a jail, which leaves it no input", hint=f"banger vm ssh {vm['name']}")
    try:
        return Keyboard(paths.vm(vm["id"]).console_input)
    except OSError as error:
        raise Unsupported(
            "it was started by an older banger, whose consoles take no input", hint=f"banger vm restart {vm['name']}"
        ) from error
