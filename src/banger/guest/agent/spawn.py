"""Starts one process for an exec: its own session, clean signals, pipes or a terminal.

fork and exec by hand: posix_spawn can set neither directory, user nor terminal. Other threads exist,
so everything that takes locks of the C library (users, groups, names) has been done before the fork.
"""

import os

from banger.guest.agent.command import Command
from banger.guest.agent.signals import reset_all

_TIOCSWINSZ = 0x5414  # <asm-generic/ioctls.h>


class SpawnError(Exception):
    """The program could not be started: errno and one line."""

    def __init__(self, errno: int, text: str) -> None:
        super().__init__(text)
        self.errno = errno
        self.text = text


class Child:
    """A started process and our ends of its streams; with a terminal stdin and stdout are one descriptor."""

    __slots__ = ("pid", "pidfd", "stderr", "stdin", "stdout", "tty")

    def __init__(self, pid: int, stdin: int, stdout: int, stderr: int, tty: bool) -> None:
        self.pid = pid
        self.pidfd = os.pidfd_open(pid)
        self.stdin = stdin
        self.stdout = stdout
        self.stderr = stderr
        self.tty = tty


def start(command: Command) -> Child:
    """Start the command. Raises `SpawnError` when it cannot run, OSError when descriptors run out."""
    opened: list[int] = []
    try:
        ours, theirs = _terminal(command, opened) if command.tty else _pipes(opened)
        report, told = _pair(opened)
        pid = os.fork()
        if pid == 0:
            _become(command, theirs, told)
        for fd in {*theirs, told}:
            opened.remove(fd)
            os.close(fd)
        _await_exec(pid, report)
        opened.remove(report)
        os.close(report)
        child = Child(pid, ours[0], ours[1], ours[2], command.tty)
        opened.clear()
        return child
    finally:
        for fd in opened:
            os.close(fd)


def _pair(opened: "list[int]") -> "tuple[int, int]":
    pair = os.pipe()
    opened.extend(pair)
    return pair


def _pipes(opened: "list[int]") -> "tuple[tuple[int, int, int], tuple[int, int, int]]":
    """(our stdin, stdout, stderr), (the child's)."""
    in_r, in_w = _pair(opened)
    out_r, out_w = _pair(opened)
    err_r, err_w = _pair(opened)
    return (in_w, out_r, err_r), (in_r, out_w, err_w)


def _terminal(command: Command, opened: "list[int]") -> "tuple[tuple[int, int, int], tuple[int, int, int]]":
    """The same for a pseudo-terminal; -1 stands for the stderr that it does not have."""
    master, slave = os.openpty()
    opened.extend((master, slave))
    resize(master, command.rows, command.cols)
    if os.geteuid() == 0:
        os.fchown(slave, command.account.uid, -1)
    return (master, master, -1), (slave, slave, slave)


def resize(master: int, rows: int, cols: int) -> None:
    """Tell a terminal its size; its foreground processes get SIGWINCH."""
    from fcntl import ioctl
    from struct import pack

    ioctl(master, _TIOCSWINSZ, pack("HHHH", rows, cols, 0, 0))


def _await_exec(pid: int, report: int) -> None:
    """Wait until exec has closed the report pipe; what came through it says why exec did not happen."""
    data = os.read(report, 4096)
    if not data:
        return
    os.waitpid(pid, 0)
    errno, _, text = data.decode("utf-8", "replace").partition(" ")
    raise SpawnError(int(errno), text)


def _become(command: Command, stdio: "tuple[int, int, int]", told: int) -> None:
    """In the child: turn into the program. Never returns; a failure goes through the pipe."""
    what = b"cannot set up the process"
    try:
        _leave_the_agent(stdio, command.tty)
        _take_identity(command)
        what = b"cannot enter the directory " + (command.cwd or b"/")
        _enter(command)
        what = b"cannot run " + command.argv[0]
        _execute(command)
    except OSError as error:
        reason = os.strerror(error.errno or 0).encode()
        os.write(told, b"%d %s: %s" % (error.errno or 0, what[:2000], reason))
    finally:
        os._exit(127)


def _leave_the_agent(stdio: "tuple[int, int, int]", tty: bool) -> None:
    os.setsid()
    if tty:
        os.close(os.open(os.ttyname(stdio[0]), os.O_RDWR))  # the first terminal opened becomes the session's
    for target, fd in enumerate(stdio):
        os.dup2(fd, target)
    reset_all()
    os.umask(0o022)
    _forget_oom_protection()


def _forget_oom_protection() -> None:
    """The agent is protected from the out-of-memory killer; what it starts must not be."""
    try:
        fd = os.open("/proc/self/oom_score_adj", os.O_WRONLY)
    except OSError:
        return
    try:
        os.write(fd, b"0")
    except OSError:
        pass  # not allowed here: then the agent was not protected either
    finally:
        os.close(fd)


def _take_identity(command: Command) -> None:
    account = command.account
    if account.uid != os.geteuid() or account.gid != os.getegid():
        os.setgroups(account.groups)
        os.setgid(account.gid)
        os.setuid(account.uid)


def _enter(command: Command) -> None:
    if command.cwd is not None:
        os.chdir(command.cwd)
        return
    try:
        os.chdir(command.account.home)
    except OSError:
        os.chdir("/")


def _execute(command: Command) -> None:
    """execve along PATH as execvp(3) does it; raises the most telling error."""
    name = command.argv[0]
    if b"/" in name:
        os.execve(name, command.argv, command.env)
    denied: OSError | None = None
    for folder in command.env.get(b"PATH", b"").split(b":"):
        try:
            os.execve((folder or b".") + b"/" + name, command.argv, command.env)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except PermissionError as error:
            denied = error
    raise denied or FileNotFoundError(2, "not found")
