"""Guests, clients and front ends that break the rules: the device stays whole and comes to rest."""

import gc
import os
import resource
import socket
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from banger.qemu.vsock import packet
from banger.qemu.vsock.backend import Backend
from banger.qemu.vsock.connection import Connection
from banger.qemu.vsock.limits import Limits
from tests.support.rings import (
    CID,
    HOST_BASE,
    QUEUE,
    RAM,
    TABLES_AT,
    DriverQueue,
    Rig,
    descriptors,
    read_some,
    write_some,
)

ADDRESSES = st.sampled_from([0, 0x10000, 0x200000, TABLES_AT, RAM - 10, RAM, 1 << 63, (1 << 64) - 20])
LENGTHS = st.sampled_from([0, 1, 16, 17, 43, 44, 45, 4096, RAM, 0xFFFFFFFF])
NUMBERS = st.integers(0, QUEUE + 2)
QUEUES = st.sampled_from([0, 1])
PORTS = st.sampled_from([0, 7, 52, 40000, 1 << 30, 0xFFFFFFFF])
U32 = st.one_of(st.sampled_from([0, 1, 44, 65536, 0x7FFFFFFF, 0xFFFFFFFF]), st.integers(0, 0xFFFFFFFF))
ACTIONS = st.one_of(
    st.tuples(st.just("describe"), QUEUES, NUMBERS, ADDRESSES, LENGTHS, st.integers(0, 7), NUMBERS),
    st.tuples(st.just("loop"), QUEUES, st.sampled_from([1, 3])),
    st.tuples(st.just("push"), QUEUES, st.integers(0, 0xFFFF)),
    st.tuples(st.just("index"), QUEUES, st.integers(0, 0xFFFF)),
    st.tuples(st.just("table"), st.binary(min_size=16, max_size=128)),
    st.tuples(
        st.just("packet"), st.sampled_from([CID, 9]), st.sampled_from([2, 7]), PORTS, PORTS, U32,
        st.sampled_from([1, 2]), st.integers(0, 9), U32, U32, U32,
    ),
    st.tuples(st.just("client"), st.integers(0, 300_000)),
    st.tuples(st.just("turn")),
)  # fmt: skip


def act(rig: Rig, client: socket.socket, action: tuple[object, ...]) -> None:
    kind, values = action[0], action[1:]
    if kind == "packet":
        rig.guest.send(packet.Header(*values), bytes(100))  # type: ignore[arg-type]
    elif kind == "table":
        data = bytes(values[0])  # type: ignore[call-overload]
        rig.guest.memory[TABLES_AT : TABLES_AT + len(data)] = data
    elif kind == "client":
        try:
            write_some(client, memoryview(bytes(values[0])))  # type: ignore[call-overload]
        except OSError:
            pass
    elif kind == "turn":
        rig.backend.step()
    else:
        queue = (rig.guest.rx, rig.guest.tx)[int(values[0])]  # type: ignore[call-overload]
        act_on_queue(queue, str(kind), [int(value) for value in values[1:]])  # type: ignore[call-overload]


def act_on_queue(queue: DriverQueue, kind: str, values: list[int]) -> None:
    if kind == "describe":
        number, address, length, flags, following = values
        queue.describe(number, address, length, flags, following)
    elif kind == "loop":
        for number in range(QUEUE):
            queue.describe(number, 0x300000, 64, values[0], (number + 1) % QUEUE)
    elif kind == "push":
        queue.push(values[0])
        queue.publish()
    else:
        queue.set_index(values[0])
    os.eventfd_write(queue.kick, 1)


def comes_to_rest(backend: Backend) -> bool:
    return any(not backend.step() and not backend.step() for _ in range(500))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(ACTIONS, min_size=1, max_size=30))
def test_hostile_rings_never_break_the_device(actions: list[tuple[object, ...]]) -> None:
    with tempfile.TemporaryDirectory() as directory, Rig(Path(directory)) as rig:
        client, _ = rig.connect(52)
        for action in actions:
            act(rig, client, action)
        assert comes_to_rest(rig.backend)
        assert not rig.backend.hung_up
        rig.front.stop()
        rig.boot()
        again, peer = rig.connect(53)
        again.send(b"ping")
        rig.until(lambda: peer.read() == b"ping")


def broken_index(rig: Rig) -> None:
    for number in range(QUEUE):  # each a packet that is ignored
        rig.guest.tx.describe(number, 0x300000, 44, 0, 0)
    rig.guest.tx.set_index(rig.guest.tx.published + QUEUE + 1)


def broken_address(rig: Rig) -> None:
    rig.guest.tx.describe(0, RAM - 10, 44, 0, 0)
    rig.guest.tx.push(0)


def broken_loop(rig: Rig) -> None:
    rig.guest.tx.describe(0, 0x300000, 44, 1, 0)
    rig.guest.tx.push(0)


def broken_direction(rig: Rig) -> None:
    rig.guest.tx.describe(0, 0x300000, 44, 2, 0)
    rig.guest.tx.push(0)


def broken_short_header(rig: Rig) -> None:
    rig.guest.tx.describe(0, 0x300000, 43, 0, 0)
    rig.guest.tx.push(0)


def broken_nested_table(rig: Rig) -> None:
    struct.pack_into("<QIHH", rig.guest.memory, TABLES_AT, TABLES_AT, 16, 4, 0)
    rig.guest.tx.describe(0, TABLES_AT, 16, 4, 0)
    rig.guest.tx.push(0)


def broken_length(rig: Rig) -> None:
    (peer,) = rig.guest.sockets.values()
    header = packet.Header(CID, 2, peer.guest_port, peer.host_port, 1000, packet.STREAM, packet.RW)
    rig.guest.send(header, b"short")


@pytest.mark.parametrize(
    "break_it",
    [
        broken_index,
        broken_address,
        broken_loop,
        broken_direction,
        broken_short_header,
        broken_nested_table,
        broken_length,
    ],
)
def test_broken_ring_resets_connections_until_the_driver_restarts(
    tmp_path: Path, break_it: Callable[[Rig], None]
) -> None:
    with Rig(tmp_path) as rig:
        client, _ = rig.connect(52)
        break_it(rig)
        rig.guest.tx.publish()
        os.eventfd_write(rig.guest.tx.kick, 1)
        assert rig.end(client) == b""
        rig.front.stop()
        rig.boot()
        rig.connect(52)


def test_receive_buffer_without_room_for_data_breaks_the_ring(tmp_path: Path) -> None:
    with Rig(tmp_path, started=False) as rig:
        rig.boot(receive_buffers=2)
        rig.guest.rx.describe(100, 0x300000, 44, 2, 0)
        client, _ = rig.connect(52)
        rig.guest.rx.push(100)
        rig.guest.rx.publish()
        client.send(b"x" * 100_000)
        assert rig.end(client) == b""


def test_guest_that_overruns_its_credit_is_reset(tmp_path: Path) -> None:
    with Rig(tmp_path, limits=Limits(buffer=64 << 10)) as rig:
        _, peer = rig.connect(52)
        peer.peer_allocated = 1 << 30  # the driver lies to itself
        peer.send(bytes(2_000_000))
        rig.until(lambda: peer.reset)
        assert rig.open() == 0


def test_guest_that_posts_no_receive_buffers_cannot_grow_the_queue_of_replies(tmp_path: Path) -> None:
    with Rig(tmp_path, limits=Limits(resets=20), started=False) as rig:
        rig.boot(receive_buffers=0)
        for port in range(300):
            rig.guest.send(packet.Header(CID, 2, 1, port, 0, packet.STREAM, packet.CREDIT_UPDATE))
        rig.settle()
        assert rig.backend.stats()["tx_packets"] == 20
        rig.guest.post()
        rig.until(lambda: len(rig.guest.inbox) == 300)
        assert [header.src_port for header in rig.guest.inbox] == list(range(300))


def test_forged_source_is_ignored(tmp_path: Path) -> None:
    with Rig(tmp_path) as rig:
        _, peer = rig.connect(52)
        rig.guest.inbox.clear()
        rig.guest.send(packet.Header(9, 2, 52, peer.host_port, 0, packet.STREAM, packet.RST))
        rig.settle()
        assert (rig.guest.inbox, rig.open()) == ([], 1)


LINES = [b"HELLO 1\n", b"CONNECT x\n", b"CONNECT -1\n", b"CONNECT 4294967296\n", b"CONNECT\n", b"\n", b"A" * 200]


@pytest.mark.parametrize("line", [*LINES, b"CONNECT 52 53\n", b"CONNECT 5\xb2\n", b" " * 31 + b"CONNECT 52\n"])
def test_garbage_instead_of_a_connect_line_is_closed(tmp_path: Path, line: bytes) -> None:
    with Rig(tmp_path) as rig:
        rig.guest.listening.add(52)
        assert rig.end(rig.client(line)) == b""
        assert (rig.open(), rig.guest.inbox) == (0, [])


def test_client_that_sends_no_line_is_closed(tmp_path: Path) -> None:
    with Rig(tmp_path, limits=Limits(line_time=0.05)) as rig:
        assert rig.end(rig.client(b"CONNECT 5")) == b""


def test_clients_beyond_the_limit_are_closed(tmp_path: Path) -> None:
    with Rig(tmp_path, limits=Limits(connections=2)) as rig:
        first, _ = rig.connect(52)
        rig.connect(52)
        assert rig.end(rig.client(b"")) == b""
        rig.listen(1)
        refused = rig.guest.connect(1, 2)
        rig.until(lambda: refused.reset)
        assert read_some(first) is None
        assert rig.open() == 2


def test_a_process_out_of_descriptors_waits_and_then_serves_the_client(tmp_path: Path) -> None:
    with Rig(tmp_path, limits=Limits(accept_pause=0.02)) as rig:
        rig.guest.listening.add(52)
        client = rig.client(b"CONNECT 52\n")
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (1, hard))
        try:
            rig.settle()
            assert rig.open() == 0
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert rig.receive(client, lambda data: data.endswith(b"\n")).startswith(b"OK ")


def test_clients_that_come_and_go_before_the_driver_leave_nothing(tmp_path: Path) -> None:
    with Rig(tmp_path, started=False) as rig:
        before = descriptors()
        for _ in range(50):
            client = rig.client(b"CONNECT 52\n")
            rig.settle()
            client.close()
            rig.settle()
        assert (rig.open(), descriptors()) == (0, before)
        assert not any(isinstance(thing, Connection) for thing in gc.get_objects())
        rig.boot()
        rig.settle()
        assert rig.guest.inbox == []


def message(request: int, body: bytes, *, flags: int = 1, size: int | None = None) -> bytes:
    return struct.pack("<III", request, flags, len(body) if size is None else size) + body


TABLE = struct.pack("<IIQQQQ", 1, 0, 0, 1 << 40, HOST_BASE, 0)
BAD_MESSAGES = [
    message(5, TABLE),  # more memory than its file holds
    message(5, struct.pack("<II", 200, 0)),
    message(5, b""),
    message(2, struct.pack("<Q", 1 << 50)),
    message(8, struct.pack("<II", 0, 3)),
    message(8, struct.pack("<II", 9, 128)),
    message(12, struct.pack("<Q", 7)),
    message(24, struct.pack("<III", 0, 5000, 0)),
    message(1, b"", flags=2),
    message(1, b"", size=1 << 30),
    b"\xff" * 12,
]


@pytest.mark.parametrize("data", BAD_MESSAGES)
def test_broken_control_message_ends_the_device_and_closes_its_descriptors(tmp_path: Path, data: bytes) -> None:
    before = descriptors()
    rig = Rig(tmp_path)
    with tempfile.TemporaryFile() as file:
        file.truncate(4096)
        socket.send_fds(rig.front.control, [data], [file.fileno()])
        rig.until(lambda: rig.backend.hung_up)
        rig.close()
    gc.collect()
    assert descriptors() == before


@pytest.mark.parametrize("request_number", [7, 12, 13, 14, 99])
def test_descriptors_nobody_wants_are_closed(tmp_path: Path, request_number: int) -> None:
    before = descriptors()
    rig = Rig(tmp_path)
    fds = [os.eventfd(0) for _ in range(4)]
    body = struct.pack("<Q", 0)
    for cut in (3, len(message(request_number, body))):
        data = message(request_number, body)
        socket.send_fds(rig.front.control, [data[:cut]], fds)
        rig.settle()
        rig.front.control.sendall(data[cut:])
        rig.settle()
    assert not rig.backend.hung_up
    rig.close()
    for fd in fds:
        os.close(fd)
    assert descriptors() == before


def test_children_inherit_nothing(tmp_path: Path) -> None:
    before = {int(entry.name) for entry in Path("/proc/self/fd").iterdir()}
    with Rig(tmp_path) as rig:
        rig.connect(52)
        now = {int(entry.name) for entry in Path("/proc/self/fd").iterdir()}
        fds = [fd for fd in now - before if Path(f"/proc/self/fd/{fd}").exists()]
        assert len(fds) > 10
        assert not any(os.get_inheritable(fd) for fd in fds)


def test_unknown_request_is_refused_not_ignored(tmp_path: Path) -> None:
    with Rig(tmp_path) as rig:
        assert rig.front.request(99, reply=True) == struct.pack("<Q", 1)


@pytest.mark.parametrize("request_number", [12, 13])
def test_descriptor_that_is_no_eventfd_ends_the_device(tmp_path: Path, request_number: int) -> None:
    with Rig(tmp_path) as rig:
        reader, writer = os.pipe()
        os.write(writer, b"123")
        socket.send_fds(rig.front.control, [message(request_number, struct.pack("<Q", 0))], [reader])
        rig.settle()
        rig.guest.listening.add(52)
        rig.client(b"CONNECT 52\n")
        rig.until(lambda: rig.backend.hung_up)
        os.close(reader)
        os.close(writer)


def test_ring_outside_of_memory_is_refused_without_ending_the_device(tmp_path: Path) -> None:
    with Rig(tmp_path, started=False) as rig:
        queues = (rig.guest.rx, rig.guest.tx)
        honest = queues[1].addresses
        queues[1].addresses = lambda: struct.pack("<IIQQQQ", 1, 0, 16, 16, 16, 0)  # type: ignore[method-assign]
        rig.front.start(queues)
        queues[1].addresses = honest  # type: ignore[method-assign]
        rig.front.stop()
        rig.boot()
        rig.connect(52)
