"""The guest's serial console: what it prints goes to our standard output, or where /serial says; what is typed, in."""

import asyncio
import os
import socket
import stat
import termios
import time
import tty
from collections.abc import Callable
from pathlib import Path
from typing import Any

from banger.model.firecracker import TokenBucket

LIMIT = 8 * 1024 * 1024
KEPT = 1024 * 1024
CUT = b"\n[banger-vmm: older console output was dropped here]\n"
_CHUNK = 65536


class Bucket:
    """A token bucket: `size` tokens that refill in `refill_time` ms, after a burst of `one_time_burst`."""

    def __init__(self, document: TokenBucket) -> None:
        self._size = document.size
        self._rate = document.size / document.refill_time * 1000 if document.refill_time else 0.0
        self._burst = document.one_time_burst or 0
        self._tokens = float(document.size)
        self._at = time.monotonic()

    def take(self, wanted: int) -> int:
        """How many of the wanted tokens there are now; they are taken. No size or no time means no limit."""
        if not self._size or not self._rate:
            return wanted
        now = time.monotonic()
        self._tokens = min(float(self._size), self._tokens + (now - self._at) * self._rate)
        self._at = now
        burst = min(wanted, self._burst)
        self._burst -= burst
        taken = min(wanted - burst, int(self._tokens))
        self._tokens -= taken
        return burst + taken


class SerialRelay:
    """Copies what the guest prints. A regular file is cut when it grows too long: no guest fills the host's disk."""

    def __init__(self, serial: socket.socket, output: int, limiter: TokenBucket | None = None) -> None:
        self._serial = serial
        self._output = output
        self._is_file = stat.S_ISREG(os.fstat(output).st_mode)
        self._bucket = Bucket(limiter) if limiter is not None else None
        self.written = 0
        self.dropped = 0
        serial.setblocking(False)

    def start(self) -> None:
        asyncio.get_running_loop().add_reader(self._serial.fileno(), self._copy)

    def _copy(self) -> None:
        try:
            data = self._serial.recv(_CHUNK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.close()
            return
        if self._bucket is not None:
            room = self._bucket.take(len(data))
            self.dropped += len(data) - room
            data = data[:room]
        try:
            if self._is_file and os.fstat(self._output).st_size + len(data) > LIMIT:
                self._cut()
            self.written += os.write(self._output, data)
        except OSError:
            # nobody reads, or the disk is full: the guest must not notice
            return

    def _cut(self) -> None:
        """Keep the newest part. The file is open for appending, so the next write goes to its new end.

        It is written before the rest is cut off: whoever follows the file finds its place again at any moment.
        """
        size = os.fstat(self._output).st_size
        with Path(f"/proc/self/fd/{self._output}").open("r+b") as file:
            file.seek(max(0, size - KEPT))
            newest = file.read(KEPT)
            file.seek(0)
            file.write(CUT + newest)
            file.truncate()

    def type(self, data: bytes) -> int:
        """Give the guest what was typed; how many bytes it takes now. A guest that is gone takes everything."""
        try:
            return self._serial.send(data)
        except BlockingIOError:
            return 0
        except OSError:
            return len(data)

    def typable(self, callback: Callable[[], None] | None) -> None:
        """Call back whenever the guest takes more; with None no longer."""
        if self._serial.fileno() >= 0:
            loop = asyncio.get_running_loop()
            loop.remove_writer(self._serial.fileno())
            if callback is not None:
                loop.add_writer(self._serial.fileno(), callback)

    def close(self) -> None:
        """Take what QEMU still has to say, and stop."""
        if self._serial.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(self._serial.fileno())
            self.typable(None)
            self._serial.close()


class Typing:
    """Standard input to the guest, when somebody is there to type: a terminal in the foreground, or a pipe.

    A terminal is set to pass every key on, Ctrl-C too, as Firecracker does, and set back by `close`. What the guest
    does not take yet stays in the pipe.
    """

    def __init__(self, source: int, relay: SerialRelay) -> None:
        self._source = source
        self._relay = relay
        self._modes: list[Any] | None = None
        self._open = False
        self._untaken = b""

    def start(self) -> None:
        mode = os.fstat(self._source).st_mode
        terminal = os.isatty(self._source)
        if not (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or (terminal and _in_foreground(self._source))):
            return
        if terminal:
            self._modes = termios.tcgetattr(self._source)
            tty.setraw(self._source)
        self._open = True
        asyncio.get_running_loop().add_reader(self._source, self._read)

    def _read(self) -> None:
        try:
            data = os.read(self._source, 4096)
        except OSError:
            data = b""
        if data:
            self._untaken = data
            self._pass_on()
        else:
            self.close()

    def _pass_on(self) -> None:
        loop = asyncio.get_running_loop()
        self._untaken = self._untaken[self._relay.type(self._untaken) :]
        if self._untaken:
            loop.remove_reader(self._source)
            self._relay.typable(self._pass_on)
        else:
            self._relay.typable(None)
            loop.add_reader(self._source, self._read)

    def close(self) -> None:
        """Idempotent."""
        if self._open:
            self._open = False
            asyncio.get_running_loop().remove_reader(self._source)
            self._relay.typable(None)
            if self._modes is not None:
                termios.tcsetattr(self._source, termios.TCSADRAIN, self._modes)


def _in_foreground(terminal: int) -> bool:
    """Whether reading and setting the terminal would not stop us (tcgetpgrp(3))."""
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:
        return False
