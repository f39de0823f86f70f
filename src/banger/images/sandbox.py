"""Programs that read, or are, anybody's: root only in name, in a root of their own, by bubblewrap (bwrap(1)).

They run in namespaces, with the capabilities that they are given and no way to others, see no process and no file but
what is named here, and reach no network unless they are given it. /proc is read-only: the files in it that steer
the kernel are root's, and need no capability.
"""

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from banger.images.confine import run_confined
from banger.model.errors import HostRequirement
from banger.model.sizes import show_size
from banger.system.filesystems import filesystem_of
from banger.system.process import environment, find_program

_NAMESPACES = ("pid", "ipc", "uts", "cgroup-try")
_HOST = ("bin", "sbin", "lib", "lib64", "lib32")
_TOOL = "/run/tool"
_PROXIES = ("http_proxy", "https_proxy", "no_proxy")
_LEAST_FREE = 256 * 1024**2
_LOOK_EVERY_S = 0.5
# As docker gives: enough to own files and to become another user, nothing that reaches the host.
FILES = ("CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "SETFCAP")
INSTALL = (*FILES, "SETUID", "SETGID", "KILL", "AUDIT_WRITE")


@dataclass(frozen=True)
class Sandbox:
    """What a program finds.

    root          a tree that is its root, writable; None: the host's programs and libraries, read-only
    reads         path inside -> a file or directory of the host's, read-only; the path must not lead through links
    writes        likewise, writable
    capabilities  without their CAP_
    network       the host's, for package mirrors; else none at all
    largest_file  bytes
    """

    root: Path | None = None
    reads: Mapping[str, Path] = field(default_factory=dict)
    writes: Mapping[str, Path] = field(default_factory=dict)
    capabilities: Sequence[str] = ()
    network: bool = False
    largest_file: int = 1 << 40

    async def run(self, argv: Sequence[str], *, timeout: float, on_line: Callable[[str], None]) -> None:
        """Run a program by its path inside. Raises as `run_confined`, and `HostRequirement` without bwrap."""
        await run_confined(self.command(argv), timeout=timeout, on_line=on_line)

    def command(self, argv: Sequence[str]) -> list[str]:
        """The whole argv. Raises `HostRequirement` when bwrap is missing."""
        words = [find_program("prlimit", package="util-linux"), f"--fsize={self.largest_file}", "--core=0", "--"]
        words += [find_program("bwrap", package="bubblewrap"), "--die-with-parent"]
        words += [f"--unshare-{namespace}" for namespace in (*_NAMESPACES, *(() if self.network else ("net",)))]
        words += _host() if self.root is None else ["--bind", str(self.root), "/"]
        words += ["--proc", "/proc", "--remount-ro", "/proc", "--dev", "/dev", "--tmpfs", "/run"]
        words += ["--perms", "1777", "--tmpfs", "/tmp"]
        for inside, path in self.reads.items():
            words += ["--ro-bind", str(path), inside]
        for inside, path in self.writes.items():
            words += ["--bind", str(path), inside]
        words += ["--cap-drop", "ALL"]
        for name in self.capabilities:
            words += ["--cap-add", f"CAP_{name}"]
        words += ["--chdir", "/", "--clearenv"]
        for name, value in self._environment().items():
            words += ["--setenv", name, value]
        return [*words, "--", *argv]

    def _environment(self) -> dict[str, str]:
        found = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/tmp", "LC_ALL": "C.UTF-8"}
        if self.network:
            found["DEBIAN_FRONTEND"] = "noninteractive"
            # a proxy with a password in it is not for a stranger's program
            ours = {name: value for name, value in environment().items() if name.lower() in _PROXIES}
            found |= {name: value for name, value in ours.items() if "@" not in value}
        return found


def _host() -> list[str]:
    words = ["--ro-bind", "/usr", "/usr"]
    for name in _HOST:
        path = Path("/", name)
        if path.is_symlink():
            words += ["--symlink", str(path.readlink()), str(path)]
        elif path.is_dir():
            words += ["--ro-bind", str(path), str(path)]
    return words


async def run_tool(
    sandbox: Sandbox,
    program: str,
    words: Sequence[str],
    *,
    package: str,
    timeout: float,
    on_line: Callable[[str], None] = lambda _: None,
) -> None:
    """Run one of the host's programs, wherever it is installed. Raises as `Sandbox.run`."""
    found = find_program(program, package=package)
    if not found.startswith("/usr/"):
        sandbox, found = replace(sandbox, reads={**sandbox.reads, _TOOL: Path(found)}), _TOOL
    await sandbox.run([found, *words], timeout=timeout, on_line=on_line)


def check_room(directory: Path) -> None:
    """Raise `HostRequirement` when the filesystem of a directory is about to be full."""
    if filesystem_of(directory).free < _LEAST_FREE:
        raise HostRequirement(
            f"the disk became full: fewer than {show_size(_LEAST_FREE)} are free at {directory}",
            hint="`banger capacity` shows what takes the room",
        )


async def while_there_is_room(directory: Path, work: Coroutine[Any, Any, None]) -> None:
    """Do the work; end it with `HostRequirement` when the filesystem of a directory is about to be full.

    What such a program writes is not known beforehand, and others live on that filesystem.
    """
    working = asyncio.ensure_future(work)
    try:
        while not working.done():
            await asyncio.wait({working}, timeout=_LOOK_EVERY_S)
            if not working.done():
                check_room(directory)
        working.result()
    finally:
        working.cancel()
        await asyncio.wait({working})
