"""The real agent as a child process for clients that block: `hybrid` without a loop."""

import contextlib
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from tests.unit.client import fake
from tests.unit.guest.hybrid import AGENT

_DEADLINE_S = 20.0


@contextlib.contextmanager
def agent(folder: Path, python: str = sys.executable) -> Iterator["subprocess.Popen[bytes]"]:
    """The agent, behind the hybrid vsock socket `folder/v.sock`; it must not die before the end."""
    inner = folder / "agent.sock"
    child = subprocess.Popen([python, "-I", "-S", "-B", str(AGENT), "--unix", str(inner)])
    try:
        _wait_for(inner)
        with fake.listening(folder / "v.sock", lambda stream: _splice(stream, inner)):
            yield child
        assert child.poll() is None, "the agent died"
    finally:
        child.kill()
        child.wait()
        inner.unlink(missing_ok=True)


def _wait_for(path: Path) -> None:
    deadline = time.monotonic() + _DEADLINE_S
    while True:
        with socket.socket(socket.AF_UNIX) as stream:
            if stream.connect_ex(str(path)) == 0:
                return
        assert time.monotonic() < deadline, "the agent does not listen"
        time.sleep(0.01)


def _splice(stream: socket.socket, inner: Path) -> None:
    """One client: the handshake, then bytes both ways until both have closed."""
    if fake.read_until(stream, b"\n") != b"CONNECT 1024\n":
        return
    with socket.socket(socket.AF_UNIX) as guest:
        guest.connect(str(inner))
        stream.sendall(fake.OK)
        back = threading.Thread(target=fake.copy, args=(guest, stream))
        back.start()
        fake.copy(stream, guest)
        with contextlib.suppress(OSError):
            guest.shutdown(socket.SHUT_RDWR)  # closing a vsock stream closes both directions
        back.join()
