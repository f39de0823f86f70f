"""Files: durable writes, digests, removal, paths inside a foreign root; and blocking work in threads."""

import asyncio
import errno
import fcntl
import hashlib
import io
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryFile
from typing import ParamSpec, TypeVar

from banger.model.errors import Invalid
from banger.system.process import find_program, run

P = ParamSpec("P")
T = TypeVar("T")
_MAX_LINKS = 40
_PIECE = 1024 * 1024
_ZEROS = bytes(_PIECE)
_REMOVE_S = 600.0
_COPIED = 8 * 1024 * 1024
_FICLONE = 0x40049409
_NO_REFLINK = (errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.ENOSYS, errno.EPERM)


async def in_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run blocking work in a thread. A cancelled caller still waits for the thread's end, which cannot be stopped."""
    work = asyncio.ensure_future(asyncio.to_thread(function, *args, **kwargs))
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        await asyncio.wait({work})
        if not work.cancelled():
            work.exception()  # the cancellation is what the caller gets; this one is consumed
        raise


def sha256_of(path: Path, told: Callable[[int], None] = lambda count: None) -> str:
    """The file's SHA-256 in hex. Holes are not read, which makes sparse disks several times faster.

    `told` hears after each piece how many bytes of data it had; what it raises ends the work.
    """
    digest = SparseDigest()
    with path.open("rb", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        for start, end in data_runs(file, size):
            file.seek(start)
            while start < end and (piece := file.read(min(_PIECE, end - start))):
                digest.add(start, piece)
                start += len(piece)
                told(len(piece))
    return digest.finish(size)


class SparseDigest:
    """The SHA-256 of a file of which only the data is given, in order; the rest are holes.

    `waited` is called often while zeros are counted, of which there may be many; what it raises ends the work.
    """

    def __init__(self, waited: Callable[[], None] = lambda: None) -> None:
        self._digest = hashlib.sha256()
        self._at = 0
        self._waited = waited

    def add(self, offset: int, piece: bytes) -> None:
        """Data that begins at the offset, at or behind the end of what came before."""
        self._zeros(offset - self._at)
        self._digest.update(piece)
        self._at = offset + len(piece)

    def finish(self, size: int) -> str:
        """The digest in hex of the whole file, of so many bytes."""
        self._zeros(size - self._at)
        return self._digest.hexdigest()

    def _zeros(self, count: int) -> None:
        for _ in range(count // _PIECE):
            self._digest.update(_ZEROS)
            self._waited()
        self._digest.update(_ZEROS[: count % _PIECE])


def data_runs(file: io.FileIO, size: int) -> Iterator[tuple[int, int]]:
    """Start and end of each run of data (lseek(2), SEEK_DATA)."""
    end = 0
    while end < size:
        try:
            start = file.seek(end, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # only a hole is left
                return
            raise
        end = file.seek(start, os.SEEK_HOLE)
        yield start, end


def clone_file(source: Path, target: Path) -> bool:
    """Make `target`, sharing the blocks of `source` (ioctl_ficlone(2)); False, and no target, where that cannot be."""
    with source.open("rb") as original, target.open("xb") as clone:
        if _share(original.fileno(), clone.fileno()):
            return True
    target.unlink()
    return False


def can_clone(directory: Path) -> bool:
    """Whether files of a directory's filesystem can share blocks: tried with two that have no name.

    Raises `OSError` where it cannot be tried, as on a full filesystem.
    """
    with TemporaryFile(dir=directory, buffering=0) as original, TemporaryFile(dir=directory) as clone:
        original.write(bytes(4096))
        return _share(original.fileno(), clone.fileno())


def _share(original: int, clone: int) -> bool:
    try:
        fcntl.ioctl(clone, _FICLONE, original)
        return True
    except OSError as error:
        if error.errno not in _NO_REFLINK:
            raise
        return False


def copy_sparse(source: Path, target: Path, told: Callable[[int, int], bool]) -> None:
    """Make `target` with the content of `source`; holes stay holes.

    `told` hears how many bytes of how many are done, and its False ends the copy early.
    """
    with source.open("rb", buffering=0) as original, target.open("xb", buffering=0) as copy:
        size = original.seek(0, os.SEEK_END)
        runs = list(data_runs(original, size))
        total, done = sum(end - start for start, end in runs), 0
        copy.truncate(size)
        for start, end in runs:
            copy.seek(start)
            while start < end and told(done, total):
                sent = os.sendfile(copy.fileno(), original.fileno(), start, min(_COPIED, end - start))
                start, done = start + sent, done + sent
        told(done, total)


def allocated_bytes(path: Path) -> int:
    """What the file takes on its disk, holes not counted; nothing when it is gone, or not there yet."""
    try:
        return path.stat().st_blocks * 512
    except FileNotFoundError:
        return 0


def sync_path(path: Path) -> None:
    """Flush a file, or the entries of a directory, to the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_new(path: Path, content: bytes, mode: int = 0o644) -> None:
    """Create a file that must not exist, not even as a symlink, with exactly this mode."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        os.fchmod(descriptor, mode)


def path_in_root(root: Path, guest_path: str) -> Path:
    """Where an absolute guest path lies on the host: links of its directories are followed as in a chroot.

    The last component is not followed, so that it can be replaced. Nothing may change the tree meanwhile.
    Raises `Invalid` for a relative path, one with `..`, or a loop of links.
    """
    if not guest_path.startswith("/") or "\0" in guest_path:
        raise Invalid(f"{guest_path!r} is not an absolute path")
    todo = [part for part in guest_path.split("/") if part not in ("", ".")]
    if not todo or ".." in todo:
        raise Invalid(f"{guest_path!r} does not name a file")
    last, todo, links = todo[-1], todo[:-1], 0
    done: list[str] = []
    while todo:
        part = todo.pop(0)
        if part == "..":
            done = done[:-1]
            continue
        here = root.joinpath(*done, part)
        if not here.is_symlink():
            done.append(part)
            continue
        links += 1
        if links > _MAX_LINKS:
            raise Invalid(f"{guest_path!r} goes through a loop of links")
        target = str(here.readlink())
        done = [] if target.startswith("/") else done
        todo = [piece for piece in target.split("/") if piece not in ("", ".")] + todo
    return root.joinpath(*done, last)


def mounts_below(path: Path) -> list[Path]:
    """Mount points in or at `path` that this process sees, innermost first (proc(5), mountinfo field 5)."""
    inside = os.fsencode(path.resolve())
    points = []
    for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
        point = re.sub(rb"\\([0-7]{3})", lambda m: bytes([int(m[1], 8)]), line.split(b" ")[4])
        if point == inside or point.startswith(inside + b"/"):
            points.append(Path(os.fsdecode(point)))
    return sorted(points, key=lambda point: len(point.parts), reverse=True)


async def remove_tree(path: Path) -> None:
    """Remove a directory with all it holds; what is mounted below is unmounted, never emptied. Absent is fine."""
    if not path.is_symlink() and path.is_dir():
        for point in mounts_below(path):
            await run([find_program("umount", package="mount"), "--lazy", "--", str(point)], timeout=30)
        try:
            await in_thread(shutil.rmtree, path)
        except RecursionError:  # directories in each other, a thousand and more, that somebody else has made
            await run([find_program("rm", package="coreutils"), "-rf", "--", str(path)], timeout=_REMOVE_S)
    else:
        path.unlink(missing_ok=True)


def make_read_only(path: Path) -> None:
    """Take every write permission from a file."""
    path.chmod(stat.S_IMODE(path.stat().st_mode) & ~0o222)
