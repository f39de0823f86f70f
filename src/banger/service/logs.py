"""Following a VM's log: what comes, across the cuts of a log that grew too long and the restarts of the VM."""

import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from banger.engine.launch import previous_log, tail_bytes
from banger.model.errors import Conflict
from banger.system.watch import Changes

PIECE = 65536
ANCHOR = 256  # bytes by which a place in a log is found again
SEARCHED = 16 << 20  # of the end of a log; banger-vmm cuts consoles to half of that


class LogReader:
    """A place in a log. The log may be cut under us, or moved away with a new one put in its place.

    `watch` is told the descriptor of each file that is opened.
    """

    def __init__(self, log: Path, watch: Callable[[int], None]) -> None:
        self._log = log
        self._watch = watch
        self._file: int | None = None
        self._offset = 0
        self._tail = b""  # what is right before the offset: all that was read of the file, or its last ANCHOR bytes

    def start_before_end(self, limit: int) -> None:
        """Begin with the log's last `limit` bytes."""
        if (file := self._open(self._log)) is not None:
            self._place(file, max(0, os.fstat(file).st_size - limit))

    def start_after(self, seen: bytes) -> None:
        """Begin behind what a reader has seen last, in this log or the one before; at the log's start if not found.

        Less than ANCHOR bytes are all that the log held then.
        """
        before, now = tail_bytes(previous_log(self._log), SEARCHED), tail_bytes(self._log, SEARCHED)
        if len(seen) < ANCHOR:
            end = next(
                (b + len(seen) for b, log in ((len(before), now), (0, before + now)) if log.startswith(seen)), None
            )
        else:
            found = (before + now).rfind(seen)
            end = found + len(seen) if found >= 0 else None
        log, back = self._log, len(now)
        if end is not None and end < len(before):
            log, back = previous_log(self._log), len(before) - end
        elif end is not None:
            back = len(before) + len(now) - end
        if (file := self._open(log)) is not None:
            self._place(file, max(0, os.fstat(file).st_size - back))

    def read(self) -> bytes:
        """The next piece; nothing when there is nothing new."""
        while True:
            if self._file is None:
                if (file := self._open(self._log)) is None:
                    return b""
                self._place(file, 0)
            # looked at first: the end of a file that was replaced is the end for good
            replaced = self._replaced()
            if (piece := self._next()) or not replaced:
                return piece
            self.close()

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _open(self, path: Path) -> int | None:
        try:
            file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return None
        self._watch(file)
        return file

    def _place(self, file: int, offset: int) -> None:
        self._file, self._offset = file, offset
        size = min(offset, ANCHOR)
        self._tail = os.pread(file, size, offset - size)

    def _replaced(self) -> bool:
        """Whether another file has our log's name. None has for a moment, while an engine starts."""
        assert self._file is not None
        try:
            return not os.path.samestat(self._log.stat(), os.fstat(self._file))
        except FileNotFoundError:
            return False

    def _next(self) -> bytes:
        assert self._file is not None
        size = len(self._tail)
        if os.pread(self._file, size, self._offset - size) != self._tail:
            # cut: what is before us has moved towards the start, or is gone
            newest = os.pread(self._file, SEARCHED, 0)
            found = newest.rfind(self._tail)
            self._place(self._file, found + size if found >= 0 else 0)
        piece = os.pread(self._file, PIECE, self._offset)
        self._offset += len(piece)
        self._tail = (self._tail + piece)[-ANCHOR:]
        return piece


class LogFollowers:
    """Everybody who follows a log just now."""

    def __init__(self) -> None:
        self._open: set[Changes] = set()
        self._closed = False

    def __len__(self) -> int:
        return len(self._open)

    async def follow(self, log: Path, seen: bytes | None, limit: int) -> AsyncIterator[bytes]:
        """An empty piece once it follows, then what came behind `seen` (else the last `limit` bytes) and what comes.

        Ends when the log's directory is removed, or by `close`. Raises `Conflict`, `HostRequirement`.
        """
        if self._closed:
            raise Conflict("the daemon is stopping", hint="VMs go on running: run the command again")
        try:
            changes = Changes(log.parent)
        except FileNotFoundError as error:
            raise Conflict("the VM has no logs yet", hint="`banger vm list` shows its state") from error
        reader = LogReader(log, changes.watch)
        self._open.add(changes)
        try:
            if seen is None:
                reader.start_before_end(limit)
            else:
                reader.start_after(seen)
            yield b""
            while not self._closed:
                if piece := reader.read():
                    yield piece
                elif not log.parent.exists():
                    return
                else:
                    await changes.next()
        finally:
            self._open.discard(changes)
            reader.close()
            changes.close()

    def close(self) -> None:
        """Let every stream end; none begins any more."""
        self._closed = True
        for changes in self._open:
            changes.wake()
