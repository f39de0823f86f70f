"""Ends everything that an exec started: all processes of its session, not only its first group.

A shell with a terminal puts each job into a group of its own; the session is what they share. Its number
cannot be reused while its leader is not reaped, so nobody else can be hit.
"""

import os
from select import POLLIN, poll

from banger.guest.agent.signals import SIGKILL
from banger.guest.agent.spawn import Child

_ROUNDS = 20


def end_session(child: Child, polite: int, grace_s: float) -> None:
    """Send `polite`, give the first process up to `grace_s` seconds to end, kill whatever is left."""
    _signal_session(child.pid, polite)
    poller = poll()
    poller.register(child.pidfd, POLLIN)
    poller.poll(grace_s * 1000)
    for _ in range(_ROUNDS):  # again, in case a new group was made while we looked
        if not _signal_session(child.pid, SIGKILL):
            return


def _signal_session(session: int, number: int) -> bool:
    """Signal each group of the session; False when nothing in it is alive."""
    groups = {group for group, alive in _members(session) if alive}
    for group in groups:
        try:
            os.killpg(group, number)
        except OSError:
            continue  # it ended meanwhile
    return bool(groups)


def _members(session: int) -> "list[tuple[int, bool]]":
    """(process group, whether it is more than a zombie) of each process in the session."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit() and (fields := _stat(name)) is not None and int(fields[3]) == session:
            found.append((int(fields[2]), fields[0] not in ("Z", "X")))
    return found


def _stat(pid: str) -> "list[str] | None":
    """Fields of /proc/PID/stat from the third, the state, on (proc_pid_stat(5)); None when it has gone."""
    try:
        fd = os.open("/proc/" + pid + "/stat", os.O_RDONLY)
    except OSError:
        return None
    try:
        # The name in parentheses may hold anything, parentheses too: what counts comes after the last one.
        return os.read(fd, 4096).rpartition(b") ")[2].decode("ascii").split()
    except OSError:
        return None
    finally:
        os.close(fd)
