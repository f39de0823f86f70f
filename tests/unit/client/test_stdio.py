"""What `vm proxy` does with a stream: both ways, to their ends, without turning round and round."""

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing

import pytest

from banger.client.stdio import join
from tests.unit.client import fake

LIMIT_S = 20.0


class Joined:
    """`join` in a thread: `guest` is the stream's other end, `give` its input, `take` its output."""

    def __init__(self) -> None:
        self.guest, stream = socket.socketpair()
        self._source, self.give = os.pipe()
        self.take, self._sink = os.pipe()
        self._open = [self.give, self.take]
        self.cpu_s = 0.0

        def run() -> None:
            with stream:
                join(stream, self._source, self._sink)
            self.cpu_s = time.thread_time()
            os.close(self._source)
            os.close(self._sink)

        self._thread = threading.Thread(target=run)
        self._thread.start()

    def close(self, descriptor: int) -> None:
        self._open.remove(descriptor)
        os.close(descriptor)

    def ended(self, within_s: float = LIMIT_S) -> bool:
        self._thread.join(within_s)
        return not self._thread.is_alive()

    def read_all(self) -> bytes:
        data = b""
        while part := os.read(self.take, 1 << 16):
            data += part
        return data

    def finish(self) -> None:
        self.guest.close()
        for descriptor in list(self._open):
            self.close(descriptor)
        assert self.ended()


@pytest.fixture
def joined() -> Iterator[Joined]:
    made = Joined()
    yield made
    made.finish()


def test_both_ways_at_once_and_byte_for_byte(joined: Joined) -> None:
    data = os.urandom(1 << 20) * 4

    def answer() -> None:
        fake.echo(joined.guest)
        joined.guest.shutdown(socket.SHUT_WR)

    echo = threading.Thread(target=answer)
    write = threading.Thread(target=lambda: _write_and_close(joined, data))
    echo.start()
    write.start()
    assert joined.read_all() == data
    assert joined.ended()
    echo.join()
    write.join()


def _write_and_close(joined: Joined, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(joined.give, view) :]
    joined.close(joined.give)


def test_the_end_of_the_input_is_passed_on_and_the_answer_still_comes(joined: Joined) -> None:
    os.write(joined.give, b"question")
    joined.close(joined.give)
    assert joined.guest.recv(100) == b"question"
    assert joined.guest.recv(100) == b""
    assert not joined.ended(0.1)
    joined.guest.sendall(b"answer")
    joined.guest.close()
    assert joined.read_all() == b"answer"
    assert joined.ended()


def test_the_guests_end_is_the_end_although_the_input_is_open(joined: Joined) -> None:
    joined.guest.sendall(b"bye")
    joined.guest.close()
    assert joined.ended()
    assert joined.read_all() == b"bye"


def test_what_the_guest_sent_before_it_left_is_not_lost(joined: Joined) -> None:
    """Also when we still had something to say to it, and while nobody reads; and that wait costs no time."""
    sent = 150_000  # more than a pipe holds
    joined.guest.sendall(b"x" * sent)
    joined.guest.close()
    os.write(joined.give, b"too late")
    assert not joined.ended(0.5)
    assert len(joined.read_all()) == sent
    assert joined.ended()
    assert joined.cpu_s < 0.25


def test_it_ends_when_nobody_reads_its_output_any_more(joined: Joined) -> None:
    joined.close(joined.take)
    assert joined.ended()


def test_a_slow_guest_stops_the_input(joined: Joined) -> None:
    os.set_blocking(joined.give, False)
    total, last = 0, time.monotonic()
    while time.monotonic() - last < 0.3:
        try:
            total += os.write(joined.give, b"x" * 65536)
            last = time.monotonic()
        except BlockingIOError:
            time.sleep(0.01)
    assert total < 2 << 20


def test_descriptors_are_as_they_were_afterwards() -> None:
    guest, stream = socket.socketpair()
    reads, gives = os.pipe()
    takes, writes = os.pipe()
    try:
        with closing(guest), stream:
            guest.close()
            join(stream, reads, writes)
        assert os.get_blocking(reads)
        assert os.get_blocking(writes)
    finally:
        for descriptor in (reads, gives, takes, writes):
            os.close(descriptor)
