"""Connections through the vsock device, with a driver that behaves."""

import hashlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from banger.qemu.vsock import packet
from banger.qemu.vsock.limits import Limits
from tests.support.rings import CID, GuestSocket, Layout, Rig, descriptors, read_some, write_some

VARIANTS = [(layout, event_idx) for layout in Layout for event_idx in (True, False)]


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    with Rig(tmp_path) as rig:
        yield rig


def ops(rig: Rig) -> list[int]:
    return [header.op for header in rig.guest.inbox]


def exchange(rig: Rig, client: socket.socket, peer: GuestSocket, size: int) -> tuple[str, str]:
    """Send random bytes to an echoing guest: digests of what went and what came back."""
    data = os.urandom(size)
    left, back = memoryview(data), bytearray()

    def each() -> None:
        nonlocal left
        left = left[write_some(client, left) :]
        peer.send(peer.read())
        back.extend(read_some(client) or b"")

    rig.until(lambda: len(back) == size, each)
    return hashlib.sha256(data).hexdigest(), hashlib.sha256(back).hexdigest()


@pytest.mark.parametrize(("layout", "event_idx"), VARIANTS)
def test_echo_returns_the_same_bytes(tmp_path: Path, layout: Layout, event_idx: bool) -> None:
    with Rig(tmp_path, layout=layout, event_idx=event_idx) as rig:
        client, peer = rig.connect(52)
        sent, returned = exchange(rig, client, peer, 3_000_000)
        assert sent == returned
        stats = rig.backend.stats()
        assert stats["rx_bytes"] == stats["tx_bytes"] == 3_000_000
        assert stats["connections_open"] == stats["connections_total"] == 1


def test_guest_connects_to_a_host_listener(rig: Rig) -> None:
    listener = rig.listen(1234)
    peer = rig.guest.connect(1234, 40000)
    client = rig.accepted(listener)
    rig.until(lambda: peer.connected)
    sent, returned = exchange(rig, client, peer, 1_000_000)
    assert sent == returned


def test_guest_is_refused_when_nobody_listens(rig: Rig) -> None:
    peer = rig.guest.connect(4321, 40000)
    rig.until(lambda: peer.reset)
    assert rig.open() == 0


def test_refusal_by_the_guest_ends_the_client_without_ok(rig: Rig) -> None:
    client = rig.client(b"CONNECT 9999\n")
    assert rig.end(client) == b""
    assert rig.open() == 0


def test_payload_behind_the_connect_line_arrives(rig: Rig) -> None:
    rig.guest.listening.add(52)
    client = rig.client(b"CONNECT 52\nhello")
    rig.until(lambda: any(peer.data for peer in rig.guest.sockets.values()))
    (peer,) = rig.guest.sockets.values()
    assert peer.read() == b"hello"
    assert rig.receive(client, lambda data: data.endswith(b"\n")) == b"OK %d\n" % peer.host_port


def test_connect_line_may_come_in_pieces(rig: Rig) -> None:
    rig.guest.listening.add(52)
    client = rig.client(b"CONN")
    rig.settle()
    client.send(b"ECT 5")
    rig.settle()
    client.send(b"2\n")
    assert rig.receive(client, lambda data: data.endswith(b"\n")).startswith(b"OK ")


def test_half_close_by_the_client_keeps_the_other_direction(rig: Rig) -> None:
    client, peer = rig.connect(52)
    client.send(b"question")
    client.shutdown(socket.SHUT_WR)
    rig.until(lambda: peer.peer_shut == packet.SHUT_SEND)
    assert peer.read() == b"question"
    peer.send(b"answer")
    peer.shutdown(packet.SHUT_BOTH)
    assert rig.end(client) == b"answer"
    rig.until(lambda: peer.reset)
    assert rig.open() == 0


def test_client_that_leaves_after_its_half_close_closes_the_guests_writer(rig: Rig) -> None:
    client, peer = rig.connect(52)
    client.shutdown(socket.SHUT_WR)
    rig.until(lambda: peer.peer_shut == packet.SHUT_SEND)
    client.close()
    rig.until(lambda: peer.peer_shut == packet.SHUT_BOTH)


def test_half_close_by_the_guest_keeps_the_other_direction(rig: Rig) -> None:
    client, peer = rig.connect(52)
    peer.send(b"bye")
    peer.shutdown(packet.SHUT_SEND)
    assert rig.end(client) == b"bye"
    client.send(b"still here")
    rig.until(lambda: peer.read() == b"still here")
    client.close()
    rig.until(lambda: peer.peer_shut == packet.SHUT_BOTH)
    peer.op(packet.RST)
    rig.until(lambda: rig.open() == 0)


def test_answer_to_a_half_closed_client_comes_whole_however_slowly_it_reads(rig: Rig) -> None:
    client, peer = rig.connect(52)
    client.send(b"question")
    client.shutdown(socket.SHUT_WR)
    rig.until(lambda: peer.peer_shut == packet.SHUT_SEND)
    data = os.urandom(2_000_000)
    peer.send(data)
    rig.settle()
    assert len(peer.unsent) > 1_000_000  # the client has not read yet
    assert rig.receive(client, lambda got: len(got) == len(data)) == data
    peer.shutdown(packet.SHUT_SEND)
    rig.until(lambda: peer.peer_shut == packet.SHUT_BOTH)
    assert rig.end(client) == b""


def test_guests_half_close_waits_for_its_bytes_and_the_client_goes_on_sending(rig: Rig) -> None:
    client, peer = rig.connect(52)
    data = os.urandom(200_000)
    peer.send(data)
    rig.until(lambda: not peer.unsent)
    peer.shutdown(packet.SHUT_SEND)
    rig.settle()
    left, got = memoryview(bytes(1_000_000)), bytearray()

    def each() -> None:
        nonlocal left
        left = left[write_some(client, left) :]
        got.extend(peer.read())

    rig.until(lambda: len(got) == 1_000_000, each)
    assert rig.end(client) == data
    assert peer.peer_shut == 0
    client.shutdown(socket.SHUT_WR)
    rig.until(lambda: peer.peer_shut == packet.SHUT_BOTH)


def test_both_half_closes_end_the_connection(rig: Rig) -> None:
    client, peer = rig.connect(52)
    client.shutdown(socket.SHUT_WR)
    peer.shutdown(packet.SHUT_SEND)
    rig.until(lambda: peer.peer_shut == packet.SHUT_BOTH)
    assert rig.end(client) == b""


def test_guest_that_stops_receiving_fails_the_clients_writes(rig: Rig) -> None:
    client, peer = rig.connect(52)
    peer.shutdown(packet.SHUT_RCV)
    rig.settle()
    with pytest.raises(BrokenPipeError):
        client.send(b"nobody reads this")
    peer.send(b"but it still talks")
    assert rig.receive(client, lambda data: len(data) == 18) == b"but it still talks"


def test_client_that_does_not_read_stops_the_guest_and_loses_nothing(rig: Rig) -> None:
    client, peer = rig.connect(52)
    data = os.urandom(2_000_000)
    peer.send(data)
    rig.settle()
    assert len(peer.unsent) > 1_000_000
    other, echo = rig.connect(53)
    sent, returned = exchange(rig, other, echo, 500_000)
    assert sent == returned
    assert rig.receive(client, lambda got: len(got) == len(data)) == data


def test_guest_that_does_not_read_stops_the_client_and_loses_nothing(rig: Rig) -> None:
    client, peer = rig.connect(52)
    data = os.urandom(2_000_000)
    left, got = memoryview(data), bytearray()
    while size := write_some(client, left):
        left = left[size:]
        rig.settle()
    assert len(left) > 1_000_000
    assert ops(rig).count(packet.CREDIT_REQUEST) == 1

    def each() -> None:
        nonlocal left
        left = left[write_some(client, left) :]
        got.extend(peer.read())

    rig.until(lambda: len(got) == len(data), each)
    assert bytes(got) == data
    while write_some(client, memoryview(data)):
        rig.settle()
    assert ops(rig).count(packet.CREDIT_REQUEST) > 1


def test_what_the_guest_sent_before_its_reset_is_delivered(rig: Rig) -> None:
    client, peer = rig.connect(52)
    data = os.urandom(250_000)
    peer.send(data)
    rig.until(lambda: not peer.unsent)
    peer.op(packet.RST)
    rig.settle()
    assert rig.end(client) == data
    assert rig.open() == 0


def test_client_that_writes_and_leaves_is_heard_to_the_end(rig: Rig) -> None:
    client, peer = rig.connect(52)
    peer.send(bytes(250_000))  # never read
    rig.settle()
    client.send(b"x" * 100_000)
    client.close()
    got = bytearray()
    rig.until(lambda: peer.peer_shut == packet.SHUT_BOTH, lambda: got.extend(peer.read()))
    assert len(got) == 100_000
    peer.shutdown(packet.SHUT_BOTH)
    rig.until(lambda: rig.open() == 0)


def test_vanished_client_of_a_guest_that_never_reads_is_given_up(tmp_path: Path) -> None:
    with Rig(tmp_path, limits=Limits(close_time=0.05)) as rig:
        client, peer = rig.connect(52)
        while write_some(client, memoryview(bytes(1 << 16))):
            rig.settle()
        client.close()
        rig.until(lambda: peer.reset)
        assert rig.open() == 0


def test_guest_that_never_acknowledges_a_close_is_given_up(tmp_path: Path) -> None:
    with Rig(tmp_path, limits=Limits(close_time=0.05)) as rig:
        client, peer = rig.connect(52)
        client.close()
        rig.until(lambda: peer.reset)
        assert peer.peer_shut == packet.SHUT_BOTH
        assert rig.open() == 0


def test_request_that_the_guest_ignores_times_out(tmp_path: Path) -> None:
    with Rig(tmp_path, limits=Limits(request_time=0.05), started=False) as rig:
        client = rig.client(b"CONNECT 52\n")
        assert rig.end(client) == b""


def test_client_that_connects_before_the_driver_is_served_when_it_starts(tmp_path: Path) -> None:
    with Rig(tmp_path, started=False) as rig:
        rig.guest.listening.add(52)
        client = rig.client(b"CONNECT 52\n")
        rig.settle()
        rig.boot()
        assert rig.receive(client, lambda data: data.endswith(b"\n")).startswith(b"OK ")


def test_ten_thousand_connects_leave_nothing_behind(rig: Rig) -> None:
    before = descriptors()
    for _ in range(10_000):
        client, peer = rig.connect(52)
        client.close()
        rig.until(lambda peer=peer: peer.peer_shut == packet.SHUT_BOTH)  # type: ignore[misc]
        peer.op(packet.RST)
        del rig.guest.sockets[peer.host_port, peer.guest_port]
        rig.guest.inbox.clear()
    rig.until(lambda: rig.open() == 0)
    assert descriptors() == before
    assert rig.backend.stats()["connections_total"] == 10_000


def test_driver_restart_resets_connections_and_serves_new_ones(rig: Rig) -> None:
    client, _ = rig.connect(52)
    rig.front.stop()
    rig.boot()
    assert rig.end(client) == b""
    again, peer = rig.connect(52)
    sent, returned = exchange(rig, again, peer, 100_000)
    assert sent == returned


def test_pause_and_resume_keep_connections(rig: Rig) -> None:
    client, peer = rig.connect(52)
    for _ in range(3):
        bases = rig.front.stop()
        client.send(b"sent while stopped")
        rig.settle()
        assert not peer.data
        rig.front.start((rig.guest.rx, rig.guest.tx), bases)
        rig.until(lambda: len(peer.data) == 18)
        assert peer.read() == b"sent while stopped"


def test_restored_guest_gets_no_connection_before_its_hold_ends_and_is_probed(tmp_path: Path) -> None:
    limits = Limits(restore_hold=0.05, restore_probes=(0.1,))
    with Rig(tmp_path, limits=limits, started=False) as rig:
        rig.guest.begin()
        for queue in (rig.guest.rx, rig.guest.tx):
            queue.set_index(7)
            queue.seen = 0
        rig.front.start((rig.guest.rx, rig.guest.tx), (7, 7))
        rig.guest.post()
        rig.guest.listening.add(52)
        client = rig.client(b"CONNECT 52\n")
        rig.settle()
        assert rig.guest.inbox == []
        assert rig.receive(client, lambda data: data.endswith(b"\n")).startswith(b"OK ")
        rig.until(lambda: packet.CREDIT_REQUEST in ops(rig))


def test_a_packet_for_no_connection_is_answered_by_reset(rig: Rig) -> None:
    for dst_cid, kind in ((2, packet.STREAM), (2, 9), (7, packet.STREAM)):
        rig.guest.send(packet.Header(CID, dst_cid, 5, 6, 0, kind, packet.CREDIT_UPDATE))
        rig.until(lambda: len(rig.guest.inbox) == 1)
        answer = rig.guest.inbox.pop()
        assert (answer.op, answer.kind, answer.src_cid) == (packet.RST, kind, dst_cid)
        assert (answer.src_port, answer.dst_port) == (6, 5)
