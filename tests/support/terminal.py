"""A person's terminal: a command in its foreground, and all that it shows."""

import contextlib
import os
import pty
import subprocess
import termios
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path


class Terminal:
    """Runs one command with a pseudo-terminal as its controlling one, in a session of its own."""

    def __init__(self, command: Sequence[str], directory: Path) -> None:
        self._master, self._slave = pty.openpty()
        self._modes = termios.tcgetattr(self._slave)
        self._parts: list[bytes] = []
        self._process = subprocess.Popen(
            ["setsid", "--ctty", *command], cwd=directory, stdin=self._slave, stdout=self._slave, stderr=self._slave
        )
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    @property
    def shown(self) -> str:
        return b"".join(self._parts).decode(errors="replace")

    @property
    def as_before(self) -> bool:
        """Whether the terminal's modes are those it began with."""
        return termios.tcgetattr(self._slave) == self._modes

    def _read(self) -> None:
        with contextlib.suppress(OSError):
            while data := os.read(self._master, 65536):
                self._parts.append(data)

    def type(self, data: bytes) -> None:
        """Press keys."""
        os.write(self._master, data)

    def send_signal(self, number: int) -> None:
        self._process.send_signal(number)

    def wait(self, true: Callable[[], object], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not true():
            assert self._process.poll() is None, self.shown[-2000:]
            assert time.monotonic() < deadline, self.shown[-2000:]
            time.sleep(0.02)

    def end(self, seconds: float) -> int:
        """Wait for the command to end by itself; its status."""
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running: {self.shown[-2000:]}") from None

    def close(self) -> None:
        """End the command if it has not ended, and take the terminal away."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        # the reader sees the end when nobody has the terminal open
        os.close(self._slave)
        self._thread.join(10)
        os.close(self._master)
