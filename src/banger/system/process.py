"""The only module that starts processes.

Every child gets no stdin unless asked, a scrubbed environment, and an argv (never a shell).
A failure raises `CommandFailed` whose message can be pasted into a shell.
"""

import asyncio
import contextlib
import os
import shlex
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import IO

from banger.model.errors import CommandFailed, HostRequirement, Timeout

Session = subprocess.Popen[bytes]
STDERR_TAIL = 4000
OWNER = "BANGER_PROGRAM_OF"  # in the environment of every program that `spawn` starts, once `own_programs` was called
_KEPT = ("HOME", "USER", "LOGNAME", "TMPDIR", "TERM", "LANG", "XDG_", "BANGER_", "PYTHON", "SSL_CERT_", "http_proxy",
         "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY",
         "npm_config_registry", "NPM_CONFIG_REGISTRY")  # fmt: skip
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True)
class Completed:
    """A finished command: exit status (negative: killed by that signal) and its output."""

    argv: tuple[str, ...]
    status: int
    stdout: bytes
    stderr: bytes


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """What a child sees: a fixed PATH (the user's own first), C locale, and the few names kept."""
    kept = {name: value for name, value in os.environ.items() if name.startswith(_KEPT)}
    path = os.environ.get("PATH", "")
    kept["PATH"] = f"{path}:{_PATH}" if path else _PATH
    kept["LC_ALL"] = "C.UTF-8"
    return kept | dict(extra or {})


def own_programs(owner: str) -> None:
    """Mark what `spawn` starts from here on, so that it can be found when we are dead: system/leftovers.py does."""
    os.environ[OWNER] = owner


def find_program(name: str, *, package: str) -> str:
    """Absolute path of a program, or `HostRequirement` naming the Debian package that has it."""
    found = shutil.which(name, path=environment()["PATH"])
    if found is None:
        raise HostRequirement(f"the program {name} is not installed", hint=f"apt-get install {package}")
    return found


def failure(argv: Sequence[str], status: int, stderr: bytes) -> CommandFailed:
    """The error for a command that ended badly."""
    tail = stderr[-STDERR_TAIL:].decode(errors="replace").strip()
    last = tail.splitlines()[-1] if tail else "it printed nothing"
    how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"exited with status {status}"
    return CommandFailed(
        f"{argv[0].rsplit('/', 1)[-1]} {how}: {last}",
        hint=f"to try it by hand: {shlex.join(argv)}",
        details={"argv": list(argv), "status": status, "stderr": tail},
    )


async def spawn(
    argv: Sequence[str],
    *,
    stdin: int | IO[bytes] = subprocess.DEVNULL,
    stdout: int | IO[bytes] = subprocess.DEVNULL,
    stderr: int | IO[bytes] = subprocess.DEVNULL,
    pass_fds: Sequence[int] = (),
    env: Mapping[str, str] | None = None,
    cwd: str | os.PathLike[str] | None = None,
    limit: int = 65536,
) -> asyncio.subprocess.Process:
    """Start a child of this process in its own process group; the caller waits for it."""
    try:
        return await asyncio.create_subprocess_exec(
            *argv,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            pass_fds=tuple(pass_fds),
            env=environment(env),
            cwd=cwd,
            process_group=0,
            limit=limit,
        )
    except FileNotFoundError as error:
        raise HostRequirement(
            f"cannot start {argv[0]}: not found", hint="`make setup` installs what banger needs"
        ) from error


async def run(
    argv: Sequence[str],
    *,
    timeout: float,
    input: bytes | None = None,
    env: Mapping[str, str] | None = None,
    cwd: str | os.PathLike[str] | None = None,
    check: bool = True,
) -> Completed:
    """Run a command to its end; timeout in seconds. On cancellation or timeout the whole group is killed.

    Raises `CommandFailed` when check and the status is not 0, `Timeout`, `HostRequirement`.
    """
    child = await spawn(
        argv,
        stdin=subprocess.PIPE if input is not None else subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=env,
        cwd=cwd,
    )
    try:
        async with asyncio.timeout(timeout):
            out, err = await child.communicate(input)
    except TimeoutError as error:
        raise Timeout(
            f"{argv[0].rsplit('/', 1)[-1]} did not finish within {timeout:g} s",
            hint=f"to try it by hand: {shlex.join(argv)}",
        ) from error
    finally:
        await kill_group(child)
    assert child.returncode is not None
    if check and child.returncode != 0:
        raise failure(argv, child.returncode, err)
    return Completed(tuple(argv), child.returncode, out, err)


async def kill_group(child: asyncio.subprocess.Process) -> None:
    """Kill a child started by `spawn` and its group, and reap it. Safe when it has already ended."""
    if child.returncode is not None:
        return
    try:
        os.killpg(child.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    await asyncio.shield(child.wait())


def spawn_session(
    argv: Sequence[str],
    *,
    stdin: int | IO[bytes] | None = None,
    stdout: int | IO[bytes],
    stderr: int | IO[bytes],
    pass_fds: Sequence[int] = (),
    env: Mapping[str, str] | None = None,
    cwd: str | os.PathLike[str] = "/",
) -> Session:
    """Start a process that outlives us, in a session of its own; no stdin unless one is given."""
    scrubbed = environment(env)
    scrubbed.pop(OWNER, None)
    try:
        return subprocess.Popen(
            list(argv),
            stdin=subprocess.DEVNULL if stdin is None else stdin,
            stdout=stdout,
            stderr=stderr,
            pass_fds=tuple(pass_fds),
            env=scrubbed,
            cwd=cwd,
            start_new_session=True,
        )
    except FileNotFoundError as error:
        raise HostRequirement(
            f"cannot start {argv[0]}: not found", hint="`make setup` installs what banger needs"
        ) from error


def run_foreground(argv: Sequence[str], *, package: str, env: Mapping[str, str] | None = None) -> int:
    """Run a program that the person talks to: it has our terminal, our descriptors and our whole environment, or `env`.

    Keys that signal are the child's (Ctrl-C, Ctrl-\\, Ctrl-Z); SIGTERM and SIGHUP to us are passed on to it. Returns
    its exit status, or 128 and the number of the signal that ended it. Raises `HostRequirement` naming `package`.
    """
    program = find_program(argv[0], package=package)
    child: Session | None = None

    asked: list[int] = []

    def pass_on() -> None:
        while child is not None and asked:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child.pid, asked.pop())

    def heard(number: int, _: object) -> None:
        if number in (signal.SIGTERM, signal.SIGHUP):
            asked.append(number)
            pass_on()

    # handlers, as a child would inherit that we ignore a signal
    numbers = (signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, heard) for number in numbers}
    try:
        child = subprocess.Popen([program, *argv[1:]], env=env)
        pass_on()  # what came while it was being started
        status = _wait_in_foreground(child.pid)
        child.returncode = os.waitstatus_to_exitcode(status)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


def _wait_in_foreground(pid: int) -> int:
    """The wait status of a child; when it stops itself, so do we, for the shell that waits for us."""
    while True:
        _, status = os.waitpid(pid, os.WUNTRACED)
        if not os.WIFSTOPPED(status):
            return status
        os.kill(os.getpid(), signal.SIGTSTP)
        os.kill(pid, signal.SIGCONT)
