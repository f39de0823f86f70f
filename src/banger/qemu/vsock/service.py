"""The vsock device inside an asyncio process."""

import asyncio
import math
import socket
import time
from collections.abc import Callable

from banger.qemu.vsock.backend import Backend
from banger.qemu.vsock.limits import Limits


class VsockService:
    """A vhost-user-vsock device with Firecracker's hybrid socket on the host's side.

    Single-threaded; costs nothing while nothing happens. It needs a file descriptor for each
    connection (`Limits.connections`): raise RLIMIT_NOFILE to its hard limit before.
    """

    def __init__(
        self,
        control: socket.socket,
        *,
        guest_cid: int,
        uds_path: str,
        on_closed: Callable[[], None] | None = None,
        limits: Limits | None = None,
    ) -> None:
        """Bind and listen on `uds_path`, mode 0600.

        `control` is our end of QEMU's vhost-user chardev and is ours from here on, unless this
        raises: `OSError`, EADDRINUSE if the file exists. `on_closed` is called once if QEMU closes
        the channel or breaks its protocol, after everything is closed; not for `close`.
        """
        self._backend = Backend(control, guest_cid=guest_cid, uds_path=uds_path, limits=limits or Limits())
        self._on_closed = on_closed
        self._loop: asyncio.AbstractEventLoop | None = None
        self._soon: asyncio.Handle | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    def start(self) -> None:
        """Serve from the running loop."""
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._backend.fileno(), self._readable)
        self._arm_timer()

    def stats(self) -> dict[str, int]:
        """Packets and bytes (rx: to the guest), connections open and in total."""
        return self._backend.stats()

    def close(self) -> None:
        """End all connections and remove the socket file. Idempotent."""
        if self._closed:
            return
        self._closed = True
        for handle in (self._soon, self._timer):
            if handle is not None:
                handle.cancel()
        if self._loop is not None:
            self._loop.remove_reader(self._backend.fileno())
        self._backend.close()

    def _readable(self) -> None:
        if self._soon is None:  # else a turn is about to run anyway
            self._turn()

    def _turn(self) -> None:
        assert self._loop is not None
        self._soon = None
        busy = self._backend.step()
        if self._backend.hung_up:
            self.close()
            if self._on_closed is not None:
                self._on_closed()
            return
        if busy:
            self._soon = self._loop.call_soon(self._turn)
        self._arm_timer()

    def _arm_timer(self) -> None:
        """One timer, for the next deadline. It may run early, when what it was set for has gone."""
        deadline = self._backend.next_deadline()
        if self._timer is not None:
            if self._timer.when() <= deadline:
                return
            self._timer.cancel()
            self._timer = None
        if deadline < math.inf:
            assert self._loop is not None
            delay = max(0.0, deadline - time.monotonic())
            self._timer = self._loop.call_later(delay, self._expired)

    def _expired(self) -> None:
        self._timer = None
        self._readable()
