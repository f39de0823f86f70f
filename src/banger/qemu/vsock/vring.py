"""One virtqueue as the front end sets it up, and its running `Ring` once it is complete."""

import os
import select

from banger.qemu.vsock.control import FrontEndError
from banger.qemu.vsock.memory import GuestMemory
from banger.qemu.vsock.ring import MAX_SIZE, Ring, RingAddresses


class Vring:
    """Settings and descriptors of one queue. Closes every descriptor it was given."""

    def __init__(self, *, device_writes: bool) -> None:
        self.size = self.base = 0
        self.addresses: RingAddresses | None = None
        self.kick = self.call = -1
        self.enabled = False
        self.ring: Ring | None = None
        self.stopped_at: int | None = None  # where the last ring ended; None before the first
        self._device_writes = device_writes

    def complete(self) -> bool:
        """All that a ring needs is here."""
        return self.kick >= 0 and self.addresses is not None and self.size > 0

    def start(self, memory: GuestMemory, *, event_idx: bool) -> None:
        """Run the ring; anything that was missed while it stopped is looked at. Raises `BadRing`."""
        assert self.addresses is not None
        self.ring = Ring(
            memory,
            self.addresses,
            size=self.size,
            base=self.base,
            event_idx=event_idx,
            device_writes=self._device_writes,
            interrupt=self.interrupt,
        )
        self.ring.arm()
        self.interrupt()

    def stop(self) -> None:
        """Stop the ring and remember where it stood."""
        if self.ring is not None:
            self.ring.flush()
            self.base = self.stopped_at = self.ring.next
            self.ring = None

    def abandon(self) -> None:
        """Stop a broken ring: it stays stopped until the front end gives new addresses."""
        if self.ring is not None:
            self.stopped_at = self.ring.next
        self.ring = self.addresses = None

    def resize(self, size: int) -> None:
        if not 0 < size <= MAX_SIZE or size & (size - 1):
            raise FrontEndError(f"a queue of {size} entries is not supported")
        self.size = size

    def interrupt(self) -> None:
        """Interrupt the guest. Raises `FrontEndError` if the descriptor is no eventfd."""
        if self.call < 0:
            return
        try:
            os.eventfd_write(self.call, 1)
        except BlockingIOError:
            pass  # the counter is full: an interrupt is under way
        except OSError as error:
            raise FrontEndError(f"the call descriptor does not work: {error.strerror}") from error

    def drain_kick(self) -> None:
        """Reset the kick's counter."""
        try:
            data = os.read(self.kick, 8)
        except BlockingIOError:
            return
        except OSError as error:
            raise FrontEndError(f"the kick descriptor does not work: {error.strerror}") from error
        if len(data) < 8:
            raise FrontEndError("the kick descriptor is no eventfd")

    def set_call(self, fd: int) -> None:
        if self.call >= 0:
            os.close(self.call)
        self.call = fd
        if fd >= 0:
            os.set_blocking(fd, False)

    def set_kick(self, fd: int, epoll: select.epoll) -> None:
        """Watch another kick descriptor, -1 for none. Raises `FrontEndError` if it can not be watched."""
        if self.kick >= 0:
            epoll.unregister(self.kick)
            os.close(self.kick)
        self.kick = -1
        if fd < 0:
            return
        try:
            os.set_blocking(fd, False)
            epoll.register(fd, select.EPOLLIN)
        except OSError as error:
            os.close(fd)
            raise FrontEndError(f"the kick descriptor does not work: {error.strerror}") from error
        self.kick = fd

    def close(self, epoll: select.epoll) -> None:
        self.ring = None
        self.set_call(-1)
        self.set_kick(-1, epoll)
