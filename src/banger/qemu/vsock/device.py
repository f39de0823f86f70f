"""The guest's side: packets from the transmit queue, packets into the receive queue (virtio 1.2, section 5.10)."""

import socket
from dataclasses import dataclass

from banger.qemu.vsock.connection import Connection, State
from banger.qemu.vsock.host import Host
from banger.qemu.vsock.memory import BadRing
from banger.qemu.vsock.packet import (
    CREDIT_REQUEST,
    CREDIT_UPDATE,
    HEADER,
    HEADER_SIZE,
    HOST_CID,
    MASK,
    REQUEST,
    RESPONSE,
    RST,
    RW,
    SHUT_BOTH,
    SHUT_RCV,
    SHUT_SEND,
    SHUTDOWN,
    STREAM,
    Header,
    payload,
    read_header,
    trim,
    write_header,
)
from banger.qemu.vsock.ring import Chain, Ring
from banger.qemu.vsock.streams import Streams

_CONTROL = (REQUEST, RESPONSE, CREDIT_REQUEST, CREDIT_UPDATE, SHUTDOWN)


@dataclass
class Counters:
    """Packets and payload bytes, named from the guest: rx is what it receives."""

    rx_packets: int = 0
    rx_bytes: int = 0
    tx_packets: int = 0
    tx_bytes: int = 0


class Device:
    """Moves packets between the two queues and the connections."""

    def __init__(self, streams: Streams, host: Host) -> None:
        self._streams, self._host, self._limits = streams, host, streams.limits
        self.counters = Counters()

    def pump(self, rx: Ring, tx: Ring) -> bool:
        """One bounded turn. True if there is more to do at once. Raises `BadRing`."""
        busy = self._pump_tx(tx)
        held = self._throttled()
        busy = self._pump_rx(rx) or busy
        return busy or (held and not self._throttled())

    def _throttled(self) -> bool:
        """A guest that posts no receive buffers can not grow our queue of replies."""
        return len(self._streams.resets) >= self._limits.resets

    # From the guest

    def _pump_tx(self, tx: Ring) -> bool:
        budget = self._limits.batch
        while budget and not self._throttled():
            chain = tx.peek()
            if chain is None:
                if tx.arm():
                    continue
                break
            budget -= 1
            self._packet(chain[1])
            tx.commit(chain, 0)
        tx.flush()
        return not budget

    def _packet(self, buffers: list[memoryview]) -> None:
        header = read_header(buffers)
        self.counters.tx_packets += 1
        streams = self._streams
        if header.src_cid != streams.guest_cid:
            return  # forged; an answer would reach the wrong socket
        ours = header.dst_cid == HOST_CID and header.kind == STREAM
        connection = streams.find(header.dst_port, header.src_port) if ours else None
        if connection is not None:
            self._known(connection, header, buffers)
        elif ours and header.op == REQUEST:
            self._request(header)
        elif header.op != RST:
            streams.reset(header.dst_cid, header.dst_port, header.src_port, header.kind)

    def _request(self, header: Header) -> None:
        connection = self._host.connect(header.dst_port, header.src_port)
        if connection is None:
            self._streams.reset(HOST_CID, header.dst_port, header.src_port)
        else:
            connection.peer_allocated, connection.peer_forwarded = header.allocated, header.forwarded

    def _known(self, connection: Connection, header: Header, buffers: list[memoryview]) -> None:
        self._credit(connection, header)
        op, state = header.op, connection.state
        if op == RW and state is not State.REQUESTED:
            self._data(connection, header.length, buffers)
        elif op == CREDIT_REQUEST:
            self._streams.post(connection, CREDIT_UPDATE)
        elif op == SHUTDOWN and state is not State.REQUESTED:
            self._guest_shutdown(connection, header.flags)
        elif op == RST:
            self._guest_reset(connection)
        elif op == RESPONSE and state is State.REQUESTED:
            self._accepted(connection)
        elif op != CREDIT_UPDATE:
            self._streams.drop(connection, reset=True)
        if connection.state is State.OPEN and connection.readable:
            self._streams.wake(connection)

    def _credit(self, connection: Connection, header: Header) -> None:
        before = (connection.sent - connection.peer_forwarded) & MASK
        connection.peer_allocated, connection.peer_forwarded = header.allocated, header.forwarded
        if connection.credit > 0:
            connection.asked = False
        if connection.state is State.CLOSING and (connection.sent - header.forwarded) & MASK < before:
            self._streams.expire(connection, self._limits.close_time)  # it still reads

    def _accepted(self, connection: Connection) -> None:
        connection.state, connection.deadline = State.OPEN, None
        reply = b"OK %d\n" % connection.host_port
        try:
            sent = connection.sock.send(reply)
        except OSError:
            sent = 0
        if sent < len(reply):
            self._streams.drop(connection, reset=True)

    def _guest_shutdown(self, connection: Connection, flags: int) -> None:
        connection.guest_shut |= flags & SHUT_BOTH
        if connection.guest_shut == SHUT_RCV:
            connection.shut(socket.SHUT_RD)  # the client's next write fails, as the guest's reader is gone
        self._streams.delivered(connection)

    def _guest_reset(self, connection: Connection) -> None:
        if not connection.backlog:
            self._streams.drop(connection)
            return
        # What the guest sent before it gave up still belongs to the client.
        self._streams.forget_guest(connection)
        connection.state, connection.deadline = State.DRAINING, None

    def _data(self, connection: Connection, length: int, buffers: list[memoryview]) -> None:
        views = trim(payload(buffers), length)
        if sum(map(len, views)) < length:
            raise BadRing("a packet is shorter than its header says")
        self.counters.tx_bytes += length
        connection.received = (connection.received + length) & MASK
        overrun = (connection.received - connection.forwarded) & MASK > self._limits.buffer
        if overrun or connection.guest_shut & SHUT_SEND:
            self._streams.drop(connection, reset=True)
            return
        if connection.host_shut & SHUT_RCV:
            connection.discard()
            return
        try:
            for view in views:
                connection.deliver(view)
        except OSError:
            self._streams.client_deaf(connection)
        self._streams.delivered(connection)

    # To the guest

    def _pump_rx(self, rx: Ring) -> bool:
        streams, budget, starved = self._streams, self._limits.batch, False
        while budget and (streams.resets or streams.ready):
            chain = rx.peek()
            if chain is None:
                if rx.arm():
                    continue
                starved = True
                break
            budget -= 1
            self._fill(rx, chain)
        rx.flush()
        return not starved and bool(streams.resets or streams.ready)

    def _fill(self, rx: Ring, chain: Chain) -> None:
        streams, buffers = self._streams, chain[1]
        if streams.resets:
            write_header(buffers, streams.resets.popleft())
            self.counters.rx_packets += 1
            rx.commit(chain, HEADER_SIZE)
            return
        connection = streams.ready.popitem(last=False)[0]
        size = self._control(connection, buffers) if connection.pending else self._stream(connection, buffers)
        if size:
            self.counters.rx_packets += 1
            rx.commit(chain, size)

    def _control(self, connection: Connection, buffers: list[memoryview]) -> int:
        op = next(op for op in _CONTROL if connection.pending >> op & 1)
        connection.pending &= ~(1 << op)
        connection.known = True
        if connection.pending or connection.readable:
            self._streams.wake(connection)
        return self._put(connection, buffers, op, flags=connection.host_shut if op == SHUTDOWN else 0)

    def _put(
        self, connection: Connection, buffers: list[memoryview], op: int, *, length: int = 0, flags: int = 0
    ) -> int:
        """Write a packet's header; the bytes of the whole packet."""
        connection.announced = connection.forwarded
        fields = (
            HOST_CID, self._streams.guest_cid, connection.host_port, connection.guest_port, length, STREAM,
            op, flags, self._limits.buffer, connection.forwarded,
        )  # fmt: skip
        if len(buffers[0]) >= HEADER_SIZE:
            HEADER.pack_into(buffers[0], 0, *fields)
        else:
            write_header(buffers, HEADER.pack(*fields))
        return HEADER_SIZE + length

    def _stream(self, connection: Connection, buffers: list[memoryview]) -> int:
        """One packet of the client's bytes; 0 if there are none now."""
        if connection.state is not State.OPEN or connection.host_shut & SHUT_SEND or not connection.readable:
            return 0
        if connection.guest_shut & SHUT_RCV:
            if connection.gone:
                self._streams.client_ended(connection)
            return 0
        room = connection.credit
        if room <= 0:
            return self._no_credit(connection, buffers)
        views = trim(payload(buffers), room)
        if not views:
            raise BadRing("a receive buffer has no room for data")
        size = connection.read_into(views)
        if size is None:
            return 0
        if size == 0:
            self._streams.client_ended(connection)
            return 0
        connection.deadline = None
        self.counters.rx_bytes += size
        self._streams.wake(connection)  # its next packet comes after everybody else's
        return self._put(connection, buffers, RW, length=size)

    def _no_credit(self, connection: Connection, buffers: list[memoryview]) -> int:
        if connection.gone and connection.deadline is None:
            self._streams.expire(connection, self._limits.close_time)
        if connection.asked:
            return 0  # the guest's CREDIT_UPDATE wakes it
        connection.asked = True
        return self._put(connection, buffers, CREDIT_REQUEST)
