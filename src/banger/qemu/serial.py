"""The guest's serial console, from QEMU's socket to our standard output, where Firecracker has it too."""

import asyncio
import os
import socket
import stat
from pathlib import Path

LIMIT = 8 * 1024 * 1024
KEPT = 1024 * 1024
CUT = b"\n[banger-vmm: older console output was dropped here]\n"
_CHUNK = 65536


class SerialRelay:
    """Copies what the guest prints. A regular file is cut when it grows too long: no guest fills the host's disk."""

    def __init__(self, serial: socket.socket, output: int) -> None:
        self._serial = serial
        self._output = output
        self._is_file = stat.S_ISREG(os.fstat(output).st_mode)
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
        try:
            if self._is_file and os.fstat(self._output).st_size + len(data) > LIMIT:
                self._cut()
            os.write(self._output, data)
        except OSError:
            # nobody reads, or the disk is full: the guest must not notice
            return

    def _cut(self) -> None:
        """Keep the newest part. The file is open for appending, so the next write goes to its new end."""
        size = os.fstat(self._output).st_size
        with Path(f"/proc/self/fd/{self._output}").open("rb") as file:
            file.seek(max(0, size - KEPT))
            newest = file.read(KEPT)
        os.ftruncate(self._output, 0)
        os.write(self._output, CUT + newest)

    def close(self) -> None:
        """Take what QEMU still has to say, and stop."""
        if self._serial.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(self._serial.fileno())
            self._serial.close()
