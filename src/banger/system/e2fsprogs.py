"""e2fsprogs on filesystems that a guest wrote.

Started by root, such a program is a user of its own who owns nothing but the files that it is lent; else it is the
user who started us, and can gain nothing. Time, memory and the size of what it writes are bounded. What it prints is
the guest's as well: the end of it is kept, as plain lines.
"""

import os
import re
import resource
import stat
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

from banger.model.errors import CommandFailed, Invalid
from banger.model.text import harmless
from banger.system.bounded import run_bounded
from banger.system.confine import confinement, unprivileged_user
from banger.system.process import failure, find_program

# Beside the ids of QEMU and Firecracker, above every range that others use; chance makes two at once differ.
_FIRST_UID, _UIDS = 1_905_000_000, 4_000_000
_MEMORY_MAX = 2 << 30
_KEPT = 16 * 1024

Word = str | Path | bytes


class Ended(NamedTuple):
    """A program that has run: its words as a person would type them, its status, the last lines of what it said."""

    argv: tuple[str, ...]
    status: int
    out: tuple[str, ...]
    errors: tuple[str, ...]

    @property
    def lines(self) -> tuple[str, ...]:
        return self.out + self.errors

    def failure(self) -> CommandFailed:
        return failure(self.argv, self.status, "\n".join(self.lines).encode())


def reclaim(path: Path) -> None:
    """Take back a file that was still lent when we were killed. Others are left alone."""
    if os.geteuid() == 0 and _FIRST_UID <= path.stat().st_uid < _FIRST_UID + _UIDS:
        os.chown(path, 0, 0)


async def run_tool(words: Sequence[Word], *, timeout: float, writes: bool, inherited: Sequence[int] = ()) -> Ended:
    """Run one of e2fsprogs to its end, whatever its status; `inherited` are descriptors that it has too.

    A `Path` among the words is a file that it is lent: it gets the name of a descriptor, as it may not enter the
    directory. `bytes` are the content of a file to read. Raises `Timeout`, `HostRequirement`, `Invalid`.
    """
    uid = unprivileged_user(_FIRST_UID + int.from_bytes(os.urandom(4)) % _UIDS)
    plain = tuple(_shown(word) for word in words)
    with ExitStack() as stack:
        names: dict[int, str] = {}
        sizes = [0]
        argv = [find_program(plain[0], package="e2fsprogs")]
        for word in words[1:]:
            if isinstance(word, str):
                argv.append(word)
                continue
            fd = stack.enter_context(_lent(word, uid, writes) if isinstance(word, Path) else readable_by_all(word))
            names[fd] = _shown(word)
            sizes.append(os.fstat(fd).st_size)
            argv.append(f"/proc/self/fd/{fd}")
        limits = [_limit("as", _MEMORY_MAX), _limit("fsize", max(sizes)), "--core=0"]
        for program in ("prlimit", "setpriv"):
            find_program(program, package="util-linux")
        whole = ["prlimit", *limits, "--", *confinement(uid), *argv]
        done = await run_bounded(whole, timeout=timeout, named=plain, kept=_KEPT, pass_fds=[*names, *inherited])
    return Ended(plain, done.status, _lines(done.stdout, names), _lines(done.stderr, names))


def _shown(word: Word) -> str:
    return "FILE" if isinstance(word, bytes) else str(word)


def _limit(name: str, wanted: int) -> str:
    hard = resource.getrlimit(getattr(resource, f"RLIMIT_{name.upper()}"))[1]
    return f"--{name}={wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)}"


@contextmanager
def _lent(path: Path, uid: int | None, writes: bool) -> Iterator[int]:
    """A descriptor of a file that the user may open by it (/proc/PID/fd in proc(5)); it is ours again afterwards.

    What others may read anyway is read as it is.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise Invalid(f"cannot open {path}: {error.strerror}") from error
    try:
        mode = os.fstat(fd).st_mode
        if not stat.S_ISREG(mode):
            raise Invalid(f"{path} is no regular file")
        needed = uid is not None and (writes or not mode & stat.S_IROTH)
        if needed and uid is not None:
            os.fchown(fd, uid, uid)
        try:
            yield fd
        finally:
            if needed:
                os.fchown(fd, os.geteuid(), os.getegid())
                os.fchmod(fd, stat.S_IMODE(mode))  # its owner could change that
    finally:
        os.close(fd)


@contextmanager
def readable_by_all(content: bytes) -> Iterator[int]:
    """A descriptor of a file with this content, that every user may open by it."""
    fd = os.memfd_create("banger", os.MFD_CLOEXEC)
    with os.fdopen(fd, "wb") as file:
        file.write(content)
        file.flush()
        os.fchmod(fd, 0o444)
        yield fd


def _lines(raw: bytes, names: dict[int, str]) -> tuple[str, ...]:
    def real(found: re.Match[str]) -> str:
        return names.get(int(found[1]), found[0])

    text = raw.decode(errors="replace").replace("\r", "\n").replace("\t", " ")
    lines = (harmless(line.strip()) for line in text.split("\n"))
    return tuple(re.sub(r"/proc/self/fd/(\d+)", real, line) for line in lines if line)
