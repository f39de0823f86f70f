"""The device without an event loop: one epoll, and `step`, which does what is due and never waits."""

import logging
import select
import socket
from pathlib import Path

from banger.qemu.vsock.control import ControlChannel, FrontEndError, HungUp
from banger.qemu.vsock.device import Device
from banger.qemu.vsock.host import Host, listen
from banger.qemu.vsock.limits import Limits
from banger.qemu.vsock.memory import BadRing
from banger.qemu.vsock.streams import Streams
from banger.qemu.vsock.vhost_user import Start, VhostUser

_log = logging.getLogger(__name__)
_MESSAGES = 32  # of the control channel, in one turn
_FORGET_AFTER = 4 << 20  # bytes moved: so many guest pages may have become resident here


class Backend:
    """Owns the control channel, the listening socket and every connection."""

    def __init__(self, control: socket.socket, *, guest_cid: int, uds_path: str, limits: Limits) -> None:
        """Raises `OSError` if the path can not be bound; `control` then stays the caller's."""
        self._epoll = select.epoll()
        self._listener = listen(uds_path)
        self._path = Path(uds_path)
        self._streams = Streams(self._epoll, guest_cid, limits)
        self._host = Host(self._streams, self._epoll, self._listener, uds_path)
        self._device = Device(self._streams, self._host)
        self._vhost = VhostUser(self._epoll, guest_cid, self._rings_changed)
        self._control = ControlChannel(control)
        self._epoll.register(self._control, select.EPOLLIN)
        self.hung_up = False
        self._forgotten_at = 0

    def fileno(self) -> int:
        """Readable whenever `step` has something to do."""
        return self._epoll.fileno()

    def next_deadline(self) -> float:
        """When `step` has something to do even if nothing happens (`time.monotonic`), or infinity."""
        return self._streams.next_deadline()

    def step(self) -> bool:
        """Do a bounded amount of work. True if there is more at once. Sets `hung_up` when the front end is lost."""
        try:
            self._events()
            self._streams.tick()
            rings = self._vhost.running()
            busy = rings is not None and self._device.pump(*rings)
            if not self._streams.by_fd:
                self._forget_pages()
            return busy
        except BadRing as error:
            self._vhost.abandon(error)
        except (FrontEndError, HungUp) as error:
            _log.info("vsock device ends: %s", error)
            self.hung_up = True
        return False

    def _forget_pages(self) -> None:
        """With no connection open, give back what large transfers have made resident."""
        moved = self._device.counters.rx_bytes + self._device.counters.tx_bytes
        if moved - self._forgotten_at >= _FORGET_AFTER:
            self._forgotten_at = moved
            self._vhost.forget_pages()

    def _events(self) -> None:
        accept = False
        for fd, events in self._epoll.poll(0, 256):
            connection = self._streams.by_fd.get(fd)
            if connection is not None:
                self._host.event(connection, events)
            elif fd == self._control.fileno():
                self._messages()
            elif fd == self._listener.fileno():
                accept = True
            else:
                self._vhost.kicked(fd)
        # Last: a new client may get the number of one that was closed above, and must not get its events.
        if accept:
            self._host.accept()

    def _messages(self) -> None:
        for _ in range(_MESSAGES):
            message = self._control.receive()
            if message is None:
                return
            try:
                reply = self._vhost.handle(message)
            finally:
                message.close()
            if reply is not None:
                self._control.reply(message.request, reply)

    def _rings_changed(self, start: Start) -> None:
        if start in (Start.RESTARTED, Start.BROKEN):
            _log.info("vsock connections are reset: %s", start.value)
            self._streams.transport_reset()
        elif start is Start.RESTORED:
            self._host.hold()

    def stats(self) -> dict[str, int]:
        counters = vars(self._device.counters)
        return counters | {
            "connections_open": len(self._streams.by_fd),
            "connections_total": self._streams.total,
        }

    def close(self) -> None:
        """Idempotent: end all connections, close every descriptor, remove the socket file."""
        if self._epoll.closed:
            return
        self._streams.close()
        self._vhost.close()
        self._control.close()
        self._listener.close()
        self._epoll.close()
        self._path.unlink(missing_ok=True)
