"""Starting the daemon at the first command that needs it: once, however many commands race."""

import fcntl
import json
import os
import select
import socket
import sys
from pathlib import Path

from banger.client.transport import DaemonUnreachable, dial
from banger.model.errors import HostRequirement, Timeout, from_dict
from banger.paths import Paths

START_DEADLINE_S = 30.0
READY = b"ready\n"


def dial_or_start(paths: Paths) -> socket.socket:
    """A connection to the daemon, which is started when none answers."""
    try:
        return dial(paths.daemon_socket)
    except DaemonUnreachable:
        pass
    try:
        for directory in (paths.runtime, paths.state):
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(paths.start_lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise HostRequirement(
            f"cannot write {error.filename}: {error.strerror}",
            hint="set BANGER_STATE_DIR and BANGER_RUNTIME_DIR",
        ) from error
    try:
        # the holder waits with a deadline of its own, so this wait ends too
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        try:
            return dial(paths.daemon_socket)
        except DaemonUnreachable:
            _start(paths)
        return dial(paths.daemon_socket)
    finally:
        os.close(descriptor)


def _start(paths: Paths) -> None:
    from banger.system.process import spawn_session

    print("starting the banger daemon", file=sys.stderr)
    read_end, write_end = os.pipe()
    try:
        with paths.daemon_log.open("ab") as log:
            argv = [sys.executable, "-m", "banger", "daemon", "run", "--ready-fd", str(write_end)]
            child = spawn_session(argv, stdout=log, stderr=log, pass_fds=(write_end,))
        os.close(write_end)
        write_end = -1
        child.returncode = 0  # it outlives us on purpose; nobody waits for it
        readable, _, _ = select.select([read_end], [], [], START_DEADLINE_S)
        if not readable:
            raise Timeout("the daemon did not start in time", hint=f"its log is {paths.daemon_log}")
        told = os.read(read_end, 65536)
        if not told:
            raise HostRequirement(
                f"the daemon did not start: {_last_line(paths.daemon_log)}",
                hint=f"its log is {paths.daemon_log}",
            )
        if told != READY:
            raise from_dict(json.loads(told))
    finally:
        os.close(read_end)
        if write_end >= 0:
            os.close(write_end)


def _last_line(path: Path) -> str:
    lines = path.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it said nothing"
