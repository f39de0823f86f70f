"""The back end of the vhost-user protocol, as far as QEMU's vhost-user-vsock uses it.

Source: QEMU, docs/interop/vhost-user.rst. CONFIG is mandatory for this device, and without
PROTOCOL_FEATURES QEMU refuses it with a misleading complaint about memory slots. The device's
third queue, for events, stays in QEMU.
"""

import logging
import select
import struct
from collections.abc import Callable
from enum import Enum
from typing import Any

from banger.qemu.vsock.control import FrontEndError, Message
from banger.qemu.vsock.memory import BadRing, GuestMemory, Region
from banger.qemu.vsock.ring import Ring, RingAddresses
from banger.qemu.vsock.vring import Vring

_log = logging.getLogger(__name__)

_INDIRECT, _EVENT_IDX, _PROTOCOL, _VERSION_1 = 1 << 28, 1 << 29, 1 << 30, 1 << 32
FEATURES = _INDIRECT | _EVENT_IDX | _PROTOCOL | _VERSION_1
_REPLY_ACK, _CONFIG = 1 << 3, 1 << 9
PROTOCOL_FEATURES = _REPLY_ACK | _CONFIG
_MAX_REGIONS = 8
_NO_FD = 1 << 8
_INDEX = 0xFF


class Start(Enum):
    """What a start of the rings, or their end, means for the connections."""

    FIRST = "a new guest"
    RESTORED = "a guest that ran before we did"
    RESUMED = "the same driver went on: a pause"
    RESTARTED = "a new driver, by reboot or reload"
    BROKEN = "the driver broke its rings"


def _unpack(layout: str, body: bytes) -> tuple[Any, ...]:
    try:
        return struct.unpack_from(layout, body)
    except struct.error as error:
        raise FrontEndError("a message is too short") from error


def _u64(body: bytes) -> int:
    return int(_unpack("<Q", body)[0])


class VhostUser:
    """The queues and the memory that the front end describes, message by message."""

    def __init__(self, epoll: select.epoll, guest_cid: int, changed: Callable[[Start], None]) -> None:
        self._epoll, self._config, self._changed = epoll, struct.pack("<Q", guest_cid), changed
        self._features = 0
        self._memory: GuestMemory | None = None
        self.rx, self.tx = Vring(device_writes=True), Vring(device_writes=False)
        self._vrings = (self.rx, self.tx)
        self._handlers: dict[int, Callable[[Message], bytes | None]] = {
            1: lambda _: struct.pack("<Q", FEATURES),
            2: self._set_features,
            3: lambda _: None,  # SET_OWNER
            4: self._reset_owner,
            5: self._set_mem_table,
            8: self._set_vring_num,
            9: self._set_vring_addr,
            10: self._set_vring_base,
            11: self._get_vring_base,
            12: self._set_vring_kick,
            13: self._set_vring_call,
            14: lambda _: None,  # SET_VRING_ERR: we report no errors
            15: lambda _: struct.pack("<Q", PROTOCOL_FEATURES),
            16: self._set_protocol_features,
            17: lambda _: struct.pack("<Q", len(self._vrings)),
            18: self._set_vring_enable,
            24: self._get_config,
        }

    def handle(self, message: Message) -> bytes | None:
        """Carry out a request: the reply's body, if it wants one. Raises `FrontEndError`."""
        handler = self._handlers.get(message.request)
        if handler is None:
            _log.warning("vhost-user request %d is not supported", message.request)
            return struct.pack("<Q", 1) if message.wants_ack else None
        reply = handler(message)
        return struct.pack("<Q", 0) if reply is None and message.wants_ack else reply

    def running(self) -> tuple[Ring, Ring] | None:
        """The receive and the transmit queue, when both run."""
        rx, tx = self.rx, self.tx
        if rx.ring is not None and tx.ring is not None and rx.enabled and tx.enabled:
            return rx.ring, tx.ring
        return None

    def kicked(self, fd: int) -> None:
        for vring in self._vrings:
            if vring.kick == fd:
                vring.drain_kick()

    def forget_pages(self) -> None:
        if self._memory is not None:
            self._memory.forget_pages()

    def abandon(self, error: BadRing) -> None:
        """Stop both rings for good: see `Vring.abandon`."""
        _log.error("the guest's vsock driver broke its rings, the device stops: %s", error)
        for vring in self._vrings:
            vring.abandon()
        self._changed(Start.BROKEN)

    def close(self) -> None:
        for vring in self._vrings:
            vring.close(self._epoll)
        self._memory = None

    def _start(self) -> None:
        """Run the rings once both are complete.

        A pause of the VM and a restart of its driver look the same on this channel; but a driver
        that goes on continues at the index where we stopped, and a new one begins at 0.
        """
        memory, stopped = self._memory, [vring for vring in self._vrings if vring.ring is None]
        if memory is None or not stopped or not all(vring.complete() for vring in self._vrings):
            return
        kinds = [self._kind(vring) for vring in stopped]
        try:
            for vring in stopped:
                vring.start(memory, event_idx=bool(self._features & _EVENT_IDX))
        except BadRing as error:
            self.abandon(error)
            return
        for kind in (Start.RESTARTED, Start.RESTORED, Start.RESUMED, Start.FIRST):
            if kind in kinds:
                self._changed(kind)
                return

    @staticmethod
    def _kind(vring: Vring) -> Start:
        if vring.stopped_at is None:
            return Start.RESTORED if vring.base else Start.FIRST
        return Start.RESUMED if vring.base == vring.stopped_at else Start.RESTARTED

    def _vring(self, index: int) -> Vring:
        if index >= len(self._vrings):
            raise FrontEndError(f"there is no queue {index}")
        return self._vrings[index]

    def _set_features(self, message: Message) -> None:
        features = _u64(message.body)
        if features & ~FEATURES:
            raise FrontEndError(f"features {features:#x} were not offered")
        self._features = features

    def _set_protocol_features(self, message: Message) -> None:
        if _u64(message.body) & ~PROTOCOL_FEATURES:
            raise FrontEndError("protocol features were not offered")

    def _reset_owner(self, _message: Message) -> None:
        for vring in self._vrings:
            vring.stop()

    def _set_mem_table(self, message: Message) -> None:
        count = _unpack("<I", message.body)[0]
        if not count <= _MAX_REGIONS or count != len(message.fds):
            raise FrontEndError(f"{count} memory regions came with {len(message.fds)} descriptors")
        regions = [Region(*_unpack("<QQQQ", message.body[8 + 32 * i :])) for i in range(count)]
        for vring in self._vrings:
            vring.stop()
        try:
            self._memory = GuestMemory(zip(regions, message.fds, strict=True))
        except (OSError, ValueError, OverflowError) as error:
            raise FrontEndError(f"the guest's memory can not be mapped: {error}") from error
        self._start()

    def _set_vring_num(self, message: Message) -> None:
        index, size = _unpack("<II", message.body)
        self._vring(index).resize(size)

    def _set_vring_base(self, message: Message) -> None:
        index, base = _unpack("<II", message.body)
        self._vring(index).base = base & 0xFFFF

    def _set_vring_addr(self, message: Message) -> None:
        index, _flags, descriptors, used, avail, _log_address = _unpack("<IIQQQQ", message.body)
        self._vring(index).addresses = RingAddresses(descriptors, used, avail)

    def _set_vring_kick(self, message: Message) -> None:
        vring = self._vring(_u64(message.body) & _INDEX)
        vring.set_kick(message.take_fd(), self._epoll)
        if not self._features & _PROTOCOL:
            vring.enabled = True
        self._start()

    def _set_vring_call(self, message: Message) -> None:
        value = _u64(message.body)
        vring = self._vring(value & _INDEX)
        vring.set_call(-1 if value & _NO_FD else message.take_fd())

    def _set_vring_enable(self, message: Message) -> None:
        index, on = _unpack("<II", message.body)
        self._vring(index).enabled = bool(on)
        self._start()

    def _get_vring_base(self, message: Message) -> bytes:
        index = _unpack("<I", message.body)[0]
        vring = self._vring(index)
        vring.stop()
        vring.set_kick(-1, self._epoll)
        return struct.pack("<II", index, vring.base)

    def _get_config(self, message: Message) -> bytes:
        offset, size, flags = _unpack("<III", message.body)
        if size > 256:
            raise FrontEndError("the configuration space is not that large")
        config = self._config[offset : offset + size].ljust(size, b"\0")
        return struct.pack("<III", offset, size, flags) + config
