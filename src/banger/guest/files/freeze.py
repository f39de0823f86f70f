"""Run in a guest, as root: freezes the filesystems that are mounted at the given paths, says "frozen", and thaws them
when its standard input ends, whoever ended it, or after two minutes.

What can be waited for must not need anything of a frozen filesystem that has to be written; so all is loaded before,
and the process that thaws has left the session of the command, with which the agent would end it.
"""

import fcntl
import os
import select
import signal
import sys

FREEZE, THAW = 0xC0045877, 0xC0045878  # <linux/fs.h>
LONGEST_S = 120.0


def hold(paths: "list[str]") -> int:
    devices, frozen = set(), []
    opened = [os.open(path, os.O_RDONLY) for path in paths]
    os.sync()
    try:
        for fd in opened:
            device = os.fstat(fd).st_dev
            if device not in devices:
                fcntl.ioctl(fd, FREEZE, 0)
                devices.add(device)
                frozen.append(fd)
        os.write(1, b"frozen\n")
        select.select([0], [], [], LONGEST_S)
    finally:
        for fd in reversed(frozen):
            fcntl.ioctl(fd, THAW, 0)
    return 0


def main() -> int:
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    os.setsid()
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    status = 1
    try:
        status = hold(sys.argv[1:])
    except OSError as error:
        os.write(2, f"{error.strerror}\n".encode())
    finally:
        os._exit(status)


if __name__ == "__main__":
    sys.exit(main())
