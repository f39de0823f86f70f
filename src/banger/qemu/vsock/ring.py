"""The device's side of a split virtqueue (virtio 1.2, section 2.7), with indirect descriptors and event index.

Everything in the ring is hostile: indexes, lengths and addresses are read once and checked.
"""

import struct
import threading
from collections.abc import Callable
from typing import NamedTuple

from banger.qemu.vsock.memory import BadRing, GuestMemory

MAX_SIZE = 1024  # also what recvmsg takes as one scatter list
_NEXT, _WRITE, _INDIRECT = 1, 2, 4
_DESCRIPTOR = struct.Struct("<QIHH")
_USED = struct.Struct("<II")
_fence_lock = threading.Lock()

Chain = tuple[int, list[memoryview]]
"""Head index, and the buffers it leads to."""


def _fence() -> None:
    """A full memory barrier: taking a lock is a locked instruction on x86.

    TSO keeps every other order that a virtqueue needs; only a store followed by a load may be swapped.
    """
    with _fence_lock:
        pass


class RingAddresses(NamedTuple):
    """Where the three parts lie, as QEMU addresses."""

    descriptors: int
    used: int
    avail: int


class Ring:
    """A running virtqueue: `peek` shows the next chain, `commit` consumes it, `flush` publishes what was consumed."""

    def __init__(
        self,
        memory: GuestMemory,
        addresses: RingAddresses,
        *,
        size: int,
        base: int,
        event_idx: bool,
        device_writes: bool,
        interrupt: Callable[[], None],
    ) -> None:
        """`base` is the next index of the available ring. Raises `BadRing` for bad addresses."""
        if addresses.descriptors % 16 or addresses.avail % 2 or addresses.used % 4:
            raise BadRing("a part of the ring is not aligned")
        extra = 2 if event_idx else 0
        self._memory, self._size, self._event_idx = memory, size, event_idx
        self._direction = _WRITE if device_writes else 0
        self._interrupt = interrupt
        self._descriptors = memory.host(addresses.descriptors, 16 * size)
        self._used = memory.host(addresses.used, 4 + 8 * size + extra)
        # Cast, so that an index is loaded and stored by one 16-bit access and never torn.
        self._avail_words = memory.host(addresses.avail, 4 + 2 * size + extra).cast("H")
        self._used_words = self._used.cast("H")
        self.next = base
        self._used_index = self._signalled = self._used_words[1]

    def peek(self) -> Chain | None:
        """The next available chain, or None. Raises `BadRing`."""
        waiting = (self._avail_words[1] - self.next) & 0xFFFF
        if not waiting:
            return None
        if waiting > self._size:
            raise BadRing("the available index jumped")
        head = self._avail_words[2 + self.next % self._size]
        return head, self._walk(head)

    def _walk(self, index: int) -> list[memoryview]:
        table, entries, buffers = self._descriptors, self._size, list[memoryview]()
        while True:
            if index >= entries:
                raise BadRing("a descriptor index is out of range")
            address, length, flags, following = _DESCRIPTOR.unpack_from(table, 16 * index)
            if flags & _INDIRECT:
                if table is not self._descriptors or flags & _NEXT or not length or length % 16:
                    raise BadRing("an indirect descriptor is malformed")
                table, entries, index = self._memory.guest(address, length), length // 16, 0
                continue
            if flags & _WRITE != self._direction:
                raise BadRing("a buffer has the wrong direction")
            buffers.append(self._memory.guest(address, length))
            if not flags & _NEXT:
                return buffers
            if len(buffers) >= self._size:
                raise BadRing("a descriptor chain is longer than its ring")
            index = following

    def commit(self, chain: Chain, written: int) -> None:
        """Consume the chain that `peek` showed; `written` bytes of it are for the guest."""
        _USED.pack_into(self._used, 4 + 8 * (self._used_index % self._size), chain[0], written)
        self._used_index = (self._used_index + 1) & 0xFFFF
        self.next = (self.next + 1) & 0xFFFF

    def flush(self) -> None:
        """Show the guest what was committed, and interrupt it if it asked for that."""
        old, new = self._signalled, self._used_index
        if old == new:
            return
        self._used_words[1] = new
        self._signalled = new
        _fence()
        if self._event_idx:
            used_event = self._avail_words[2 + self._size]
            wanted = (new - used_event - 1) & 0xFFFF < (new - old) & 0xFFFF
        else:
            wanted = not self._avail_words[0] & 1
        if wanted:
            self._interrupt()

    def arm(self) -> bool:
        """Ask for a kick at the next chain. True: one is there already and no kick may come."""
        if self._event_idx:
            self._used_words[2 + 4 * self._size] = self.next
            _fence()
        return self._avail_words[1] != self.next
