"""A vhost-user front end and a small guest vsock driver over a memfd: the device's tests need no VM.

`Rig.until` steps the device only when its epoll, a deadline or its own word asks for it, and lets
the driver look at its rings only after an interrupt: a lost kick or interrupt makes a test fail.
"""

import math
import mmap
import os
import select
import socket
import struct
import time
from collections.abc import Callable, Iterator
from enum import Enum
from pathlib import Path
from types import TracebackType
from typing import Self

from banger.qemu.vsock import packet
from banger.qemu.vsock.backend import Backend
from banger.qemu.vsock.limits import Limits
from banger.qemu.vsock.packet import HEADER_SIZE, MASK, Header

CID = 3
RAM = 16 << 20
HOST_BASE = 0x7F00_0000_0000
QUEUE = 128
RX_BUFFER, RX_BUFFERS = 4096, 32
TX_BUFFER, TX_BUFFERS = 80 << 10, 32
_QUEUE_AT, _QUEUE_STEP, _AVAIL, _USED = 0x10000, 0x10000, 0x2000, 0x4000
_RX_AT, _TX_AT, TABLES_AT = 0x100000, 0x200000, 0x800000
_NEXT, _WRITE, _INDIRECT = 1, 2, 4
_EVENT_IDX, _ALL_FEATURES = 1 << 29, 0x1_7000_0000
GUEST_BUFFER = 64 << 10


class Layout(Enum):
    """How the driver lays a packet out in descriptors."""

    SINGLE = "one buffer"
    SPLIT = "a header cut in two, and the data apart"
    INDIRECT = "the same in an indirect table"


class DriverQueue:
    """The driver's side of one split virtqueue."""

    def __init__(self, memory: mmap.mmap, index: int, *, event_idx: bool) -> None:
        self.memory, self.base, self.index = memory, _QUEUE_AT + index * _QUEUE_STEP, index
        self.kick = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.call = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.event_idx = event_idx
        self.begin()

    def begin(self) -> None:
        """Start with an empty ring."""
        self.available = self.published = self.seen = 0
        self.memory[self.base : self.base + _QUEUE_STEP] = bytes(_QUEUE_STEP)

    def addresses(self) -> bytes:
        base = HOST_BASE + self.base
        return struct.pack("<IIQQQQ", self.index, 0, base, base + _USED, base + _AVAIL, 0)

    def describe(self, number: int, address: int, length: int, flags: int, following: int) -> None:
        struct.pack_into("<QIHH", self.memory, self.base + 16 * number, address, length, flags, following)

    def chain(self, head: int, pieces: list[tuple[int, int]], *, write: bool, table: int | None) -> None:
        """Lay out (address, length) pieces from descriptor `head` on, or in a table at that address."""
        direction = _WRITE if write else 0
        for i, (address, length) in enumerate(pieces):
            flags = direction | (_NEXT if i + 1 < len(pieces) else 0)
            if table is None:
                self.describe(head + i, address, length, flags, head + i + 1)
            else:
                struct.pack_into("<QIHH", self.memory, table + 16 * i, address, length, flags, i + 1)
        if table is not None:
            self.describe(head, table, 16 * len(pieces), _INDIRECT, 0)

    def push(self, head: int) -> None:
        struct.pack_into("<H", self.memory, self.base + _AVAIL + 4 + 2 * (self.available % QUEUE), head)
        self.available = (self.available + 1) & 0xFFFF

    def publish(self) -> None:
        """Show the device what was pushed, and kick it if it asked for that."""
        old, new = self.published, self.available
        if old == new:
            return
        self.set_index(new)
        wanted = True
        if self.event_idx:
            event = struct.unpack_from("<H", self.memory, self.base + _USED + 4 + 8 * QUEUE)[0]
            wanted = (new - event - 1) & 0xFFFF < (new - old) & 0xFFFF
        if wanted:
            os.eventfd_write(self.kick, 1)

    def set_index(self, index: int) -> None:
        self.published = self.available = index
        struct.pack_into("<H", self.memory, self.base + _AVAIL + 2, index)

    def take(self) -> Iterator[tuple[int, int]]:
        """(head, bytes written) of each chain that the device returned."""
        while True:
            if struct.unpack_from("<H", self.memory, self.base + _USED + 2)[0] == self.seen:
                # Ask for an interrupt at the next one, then look again.
                struct.pack_into("<H", self.memory, self.base + _AVAIL + 4 + 2 * QUEUE, self.seen)
                if struct.unpack_from("<H", self.memory, self.base + _USED + 2)[0] == self.seen:
                    return
            head, length = struct.unpack_from("<II", self.memory, self.base + _USED + 4 + 8 * (self.seen % QUEUE))
            self.seen = (self.seen + 1) & 0xFFFF
            yield head, length

    def interrupted(self) -> bool:
        try:
            return os.eventfd_read(self.call) > 0
        except BlockingIOError:
            return False

    def close(self) -> None:
        os.close(self.kick)
        os.close(self.call)


class GuestSocket:
    """One connected socket in the guest, with credit both ways."""

    def __init__(self, guest: "Guest", host_port: int, guest_port: int) -> None:
        self.guest, self.host_port, self.guest_port = guest, host_port, guest_port
        self.connected = self.reset = False
        self.peer_shut = 0
        self.data = bytearray()
        self.unsent = bytearray()
        self.peer_allocated = self.peer_forwarded = self.sent = 0
        self.forwarded = self.announced = 0

    def op(self, op: int, data: bytes = b"", *, flags: int = 0) -> None:
        self.announced = self.forwarded
        header = Header(
            CID, 2, self.guest_port, self.host_port, len(data), packet.STREAM, op, flags, GUEST_BUFFER,
            self.forwarded & MASK,
        )  # fmt: skip
        self.guest.send(header, data)

    def send(self, data: bytes) -> None:
        self.unsent += data
        self.flush()

    def flush(self) -> None:
        """Send what credit and free buffers allow."""
        while self.unsent and self.connected and self.guest.free:
            room = self.peer_allocated - ((self.sent - self.peer_forwarded) & MASK)
            size = min(room, len(self.unsent), 64 << 10)
            if size <= 0:
                return
            self.op(packet.RW, bytes(self.unsent[:size]))
            self.sent += size
            del self.unsent[:size]

    def read(self) -> bytes:
        """Take everything that has arrived, and give the credit back."""
        data = bytes(self.data)
        self.data.clear()
        self.forwarded += len(data)
        if self.forwarded - self.announced >= GUEST_BUFFER // 4 and not self.reset:
            self.op(packet.CREDIT_UPDATE)
        return data

    def shutdown(self, flags: int) -> None:
        self.op(packet.SHUTDOWN, flags=flags)


class Guest:
    """A vsock driver with listening ports."""

    def __init__(self, memory: mmap.mmap, *, event_idx: bool = True, layout: Layout = Layout.SINGLE) -> None:
        self.memory, self.layout = memory, layout
        self.rx = DriverQueue(memory, 0, event_idx=event_idx)
        self.tx = DriverQueue(memory, 1, event_idx=event_idx)
        self.listening: set[int] = set()
        self.begin()

    def begin(self) -> None:
        """Boot: empty rings, receive buffers posted, no sockets."""
        self.sockets: dict[tuple[int, int], GuestSocket] = {}
        self.inbox: list[Header] = []
        self.waiting: list[tuple[Header, bytes]] = []
        self.rx.begin()
        self.tx.begin()
        self.free = list(range(TX_BUFFERS))

    def _pieces(self, address: int, size: int) -> list[tuple[int, int]]:
        if self.layout is Layout.SINGLE:
            return [(address, size)]
        pieces = [(address, 20), (address + 20, HEADER_SIZE - 20)]
        return [*pieces, (address + HEADER_SIZE, size - HEADER_SIZE)] if size > HEADER_SIZE else pieces

    def _table(self, number: int) -> int | None:
        return TABLES_AT + 64 * number if self.layout is Layout.INDIRECT else None

    def post(self, count: int = RX_BUFFERS) -> None:
        """Give the device its first receive buffers."""
        for number in range(count):
            self._post(number)
        self.rx.publish()

    def _post(self, number: int) -> None:
        pieces = self._pieces(_RX_AT + number * RX_BUFFER, RX_BUFFER)
        self.rx.chain(3 * number, pieces, write=True, table=self._table(number))
        self.rx.push(3 * number)

    def send(self, header: Header, data: bytes = b"") -> None:
        """Transmit a packet, at once or when a buffer is free."""
        self.waiting.append((header, data))
        self._transmit()

    def _transmit(self) -> None:
        while self.waiting and self.free:
            header, data = self.waiting.pop(0)
            number = self.free.pop()
            address = _TX_AT + number * TX_BUFFER
            size = HEADER_SIZE + len(data)
            self.memory[address : address + size] = header.pack() + data
            table = self._table(RX_BUFFERS + number)
            self.tx.chain(3 * number, self._pieces(address, size), write=False, table=table)
            self.tx.push(3 * number)
        self.tx.publish()

    def interrupt(self) -> None:
        """Handle interrupts, if there are any."""
        if self.tx.interrupted():
            self.free += [head // 3 for head, _ in self.tx.take()]
            self._transmit()
            for sock in list(self.sockets.values()):
                sock.flush()
        if self.rx.interrupted():
            for head, length in self.rx.take():
                address = _RX_AT + head // 3 * RX_BUFFER
                raw = self.memory[address : address + length]
                self._post(head // 3)
                self._receive(Header._make(packet.HEADER.unpack_from(raw)), raw[HEADER_SIZE:])
            self.rx.publish()

    def _receive(self, header: Header, data: bytes) -> None:
        assert len(data) == header.length
        assert header.dst_cid == CID
        self.inbox.append(header)
        key = header.src_port, header.dst_port
        sock = self.sockets.get(key)
        if header.op == packet.REQUEST:
            if header.dst_port not in self.listening:
                self.send(Header(CID, 2, key[1], key[0], 0, packet.STREAM, packet.RST))
                return
            sock = self.sockets[key] = GuestSocket(self, *key)
            sock.connected = True
            sock.op(packet.RESPONSE)
        if sock is not None:
            self._socket(sock, header, data)

    def _socket(self, sock: GuestSocket, header: Header, data: bytes) -> None:
        sock.peer_allocated, sock.peer_forwarded = header.allocated, header.forwarded
        if header.op == packet.RESPONSE:
            sock.connected = True
        elif header.op == packet.RW:
            sock.data += data
            assert len(sock.data) <= GUEST_BUFFER, "the device overran the guest's credit"
        elif header.op == packet.CREDIT_REQUEST:
            sock.op(packet.CREDIT_UPDATE)
        elif header.op == packet.SHUTDOWN:
            sock.peer_shut |= header.flags
        elif header.op == packet.RST:
            sock.reset, sock.connected = True, False
            del self.sockets[sock.host_port, sock.guest_port]
        sock.flush()

    def connect(self, host_port: int, guest_port: int) -> GuestSocket:
        sock = self.sockets[host_port, guest_port] = GuestSocket(self, host_port, guest_port)
        sock.op(packet.REQUEST)
        return sock

    def close(self) -> None:
        self.rx.close()
        self.tx.close()


class FrontEnd:
    """QEMU's part: the control channel's messages."""

    def __init__(self, control: socket.socket, step: Callable[[], object]) -> None:
        self.control, self._step = control, step
        self.ram = os.memfd_create("ram")
        os.ftruncate(self.ram, RAM)
        self.memory = mmap.mmap(self.ram, RAM)
        control.settimeout(10)

    def request(self, request: int, body: bytes = b"", fds: tuple[int, ...] = (), *, reply: bool = False) -> bytes:
        """Send a message; with `reply`, the body of its answer."""
        message = struct.pack("<III", request, 1 | (8 if reply else 0), len(body)) + body
        socket.send_fds(self.control, [message], list(fds))
        self._step()
        if not reply:
            return b""
        answered, flags, size = struct.unpack("<III", self.control.recv(12, socket.MSG_WAITALL))
        assert (answered, flags) == (request, 5)
        return self.control.recv(size, socket.MSG_WAITALL)

    def negotiate(self, features: int) -> None:
        (offered,) = struct.unpack("<Q", self.request(1, reply=True))
        assert offered == _ALL_FEATURES
        assert self.request(15, reply=True) == struct.pack("<Q", 0x208)
        self.request(16, struct.pack("<Q", 0x208))
        config = self.request(24, struct.pack("<III8x", 0, 8, 0), reply=True)
        assert struct.unpack_from("<Q", config, 12) == (CID,)
        self.request(2, struct.pack("<Q", features))
        self.request(3)

    def share_memory(self) -> None:
        table = struct.pack("<IIQQQQ", 1, 0, 0, RAM, HOST_BASE, 0)
        assert self.request(5, table, (self.ram,), reply=True) == bytes(8)

    def start(self, queues: tuple[DriverQueue, DriverQueue], bases: tuple[int, int] = (0, 0)) -> None:
        """Set the queues up and enable them."""
        for queue, base in zip(queues, bases, strict=True):
            number = struct.pack("<Q", queue.index)
            self.request(8, struct.pack("<II", queue.index, QUEUE))
            self.request(10, struct.pack("<II", queue.index, base))
            self.request(9, queue.addresses())
            self.request(12, number, (queue.kick,))
            self.request(13, number, (queue.call,))
            assert self.request(18, struct.pack("<II", queue.index, 1), reply=True) == bytes(8)

    def stop(self) -> tuple[int, int]:
        """Stop both queues; where each stood."""
        bases = [struct.unpack("<II", self.request(11, struct.pack("<II", i, 0), reply=True)) for i in (0, 1)]
        return bases[0][1], bases[1][1]

    def close(self) -> None:
        self.control.close()
        self.memory.close()
        os.close(self.ram)


class Rig:
    """A device, its front end and a guest, in one thread."""

    def __init__(
        self,
        directory: Path,
        *,
        limits: Limits | None = None,
        layout: Layout = Layout.SINGLE,
        event_idx: bool = True,
        started: bool = True,
    ) -> None:
        self.path = str(directory / "v.sock")
        ours, theirs = socket.socketpair()
        self.backend = Backend(ours, guest_cid=CID, uds_path=self.path, limits=limits or Limits())
        self.front = FrontEnd(theirs, self.backend.step)
        self.guest = Guest(self.front.memory, event_idx=event_idx, layout=layout)
        self._sockets: list[socket.socket] = []
        self._busy = False
        self.front.negotiate(_ALL_FEATURES if event_idx else _ALL_FEATURES & ~_EVENT_IDX)
        self.front.share_memory()
        if started:
            self.boot()

    def boot(self, receive_buffers: int = RX_BUFFERS) -> None:
        """Start the guest's driver afresh."""
        self.guest.begin()
        self.front.start((self.guest.rx, self.guest.tx))
        self.guest.post(receive_buffers)

    def turn(self) -> None:
        """Let each side do what it was woken for."""
        due = time.monotonic() >= self.backend.next_deadline()
        if self._busy or due or select.select([self.backend.fileno()], [], [], 0)[0]:
            self._busy = self.backend.step()
        self.guest.interrupt()

    def until(self, done: Callable[[], bool], each: Callable[[], object] = lambda: None) -> None:
        """Run until something holds; fails after 20 s."""
        give_up = time.monotonic() + 20
        while not done():
            assert time.monotonic() < give_up, "it never happened"
            if not self._busy:
                left = self.backend.next_deadline() - time.monotonic()
                wait = 0.005 if math.isinf(left) else min(max(left, 0), 0.005)
                select.select([self.backend.fileno(), self.guest.rx.call, self.guest.tx.call], [], [], wait)
            self.turn()
            each()

    def settle(self, limit: int = 3000) -> None:
        """Run until nobody has anything to do; fails if that never comes: somebody spins."""
        for _ in range(limit):
            waiting = [self.backend.fileno(), self.guest.rx.call, self.guest.tx.call]
            if not self._busy and not select.select(waiting, [], [], 0)[0]:
                return
            self.turn()
        raise AssertionError("the device does not come to rest")

    def client(self, line: bytes) -> socket.socket:
        """A host client that has sent a line."""
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(self.path)
        sock.sendall(line)
        sock.setblocking(False)
        self._sockets.append(sock)
        return sock

    def listen(self, port: int) -> socket.socket:
        """Serve a port of the host for guests."""
        sock = socket.socket(socket.AF_UNIX)
        sock.bind(f"{self.path}_{port}")
        sock.listen(8)
        sock.setblocking(False)
        self._sockets.append(sock)
        return sock

    def accepted(self, listener: socket.socket) -> socket.socket:
        self.until(lambda: bool(select.select([listener], [], [], 0)[0]))
        sock, _ = listener.accept()
        sock.setblocking(False)
        self._sockets.append(sock)
        return sock

    def connect(self, port: int) -> tuple[socket.socket, GuestSocket]:
        """Connect host to guest; both ends."""
        self.guest.listening.add(port)
        client = self.client(b"CONNECT %d\n" % port)
        reply = self.receive(client, lambda data: data.endswith(b"\n"))
        host_port = int(reply.removeprefix(b"OK "))
        return client, self.guest.sockets[host_port, port]

    def receive(self, client: socket.socket, enough: Callable[[bytearray], bool]) -> bytes:
        """Read from a client until that is enough or its stream ends."""
        data, ended = bytearray(), False

        def read() -> None:
            nonlocal ended
            part = read_some(client)
            ended = part == b""
            data.extend(part or b"")

        self.until(lambda: ended or enough(data), read)
        return bytes(data)

    def end(self, client: socket.socket) -> bytes:
        """Everything up to the end of a client's stream."""
        return self.receive(client, lambda _: False)

    def open(self) -> int:
        return self.backend.stats()["connections_open"]

    def close(self) -> None:
        for sock in self._sockets:
            sock.close()
        self.backend.close()
        self.guest.close()
        self.front.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def read_some(sock: socket.socket) -> bytes | None:
    """What a non-blocking socket has: b"" at its end (or after a reset), None if nothing is there."""
    try:
        return sock.recv(1 << 16)
    except BlockingIOError:
        return None
    except ConnectionError:
        return b""


def write_some(sock: socket.socket, data: memoryview) -> int:
    """How much a non-blocking socket took."""
    try:
        return sock.send(data)
    except BlockingIOError:
        return 0


def descriptors() -> int:
    """How many file descriptors this process holds."""
    return len(list(Path("/proc/self/fd").iterdir()))
