"""Runs a program of the guest to its end: bounded time, its standard error kept for the host."""

import os
from select import POLLIN, poll

from banger.guest.agent.command import PATH
from banger.guest.agent.rootfs import find_program
from banger.guest.agent.signals import SIGPIPE

ERROR_BYTES = 2000  # kept of standard error; the agent answers with its last line


class ProgramFailed(Exception):
    """A program is absent, or ended with a status that is not 0: one line of text."""


def run(argv: "list[str]", seconds: float, *, root: str = "", stdin: bytes = b"") -> bool:
    """Run `argv`, whose program is looked up below `root`, with at most a pipe's worth (64 KiB) of `stdin`.

    True when it ended with status 0; False when it still runs after `seconds`: it is left alone and reaped
    in the background. Raises `ProgramFailed`.
    """
    program = find_program(root, argv[0])
    if program is None:
        raise ProgramFailed(f"there is no {argv[0]}")
    in_r, in_w = os.pipe()
    err_r, err_w = os.pipe()
    try:
        os.write(in_w, stdin)
        pid = _spawn(program, argv, in_r, err_w)
    except OSError as error:
        os.close(err_r)
        raise ProgramFailed(f"{argv[0]}: {error.strerror}") from None
    finally:
        for fd in (in_r, in_w, err_w):
            os.close(fd)
    try:
        return _await(argv[0], pid, err_r, seconds)
    finally:
        os.close(err_r)


def _spawn(program: str, argv: "list[str]", stdin: int, stderr: int) -> int:
    actions = [
        (os.POSIX_SPAWN_DUP2, stdin, 0),
        (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
        (os.POSIX_SPAWN_DUP2, stderr, 2),
    ]
    return os.posix_spawn(program, argv, {"PATH": PATH}, file_actions=actions, setsigdef=[SIGPIPE])


def _await(name: str, pid: int, err_r: int, seconds: float) -> bool:
    pidfd = os.pidfd_open(pid)
    try:
        poller = poll()
        poller.register(pidfd, POLLIN)
        if not poller.poll(seconds * 1000):
            _reap_later(pid)
            return False
    finally:
        os.close(pidfd)
    status = os.waitpid(pid, 0)[1]
    if status == 0:
        return True
    os.set_blocking(err_r, False)  # something that it started may hold the pipe open
    try:
        text = os.read(err_r, ERROR_BYTES).decode("utf-8", "replace")
    except BlockingIOError:
        text = ""
    lines = [line for line in text.splitlines() if line.strip()]
    how = f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else f"status {os.WEXITSTATUS(status)}"
    raise ProgramFailed(f"{name} ended with {how}" + (f": {lines[-1].strip()[:300]}" if lines else ""))


def _reap_later(pid: int) -> None:
    from _thread import start_new_thread

    start_new_thread(os.waitpid, (pid, 0))


def kill_by_pid_file(root: str, path: str, name: str, number: int) -> None:
    """Signal the process that a pid file names, if it is still the program `name`."""
    from banger.guest.agent.health import read_text

    pid = read_text(root + path)
    if pid.isdigit() and read_text(f"/proc/{pid}/comm") == name:
        try:
            os.kill(int(pid), number)
        except OSError:
            pass  # it has ended meanwhile
