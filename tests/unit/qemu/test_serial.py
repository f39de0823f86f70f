"""The console's relay: everything arrives, and a file never grows without end."""

import asyncio
import os
import select
import socket
import termios
import time
from collections.abc import Callable
from pathlib import Path

from banger.model.firecracker import TokenBucket
from banger.qemu import serial
from banger.qemu.serial import CUT, KEPT, LIMIT, Bucket, SerialRelay, Typing


def relay(data: bytes, output: int, limiter: TokenBucket | None = None) -> SerialRelay:
    async def main() -> SerialRelay:
        ours, theirs = socket.socketpair()
        made = SerialRelay(ours, output, limiter)
        made.start()
        loop = asyncio.get_running_loop()
        theirs.setblocking(False)
        await loop.sock_sendall(theirs, data)
        theirs.close()
        async with asyncio.timeout(10):
            while ours.fileno() >= 0:  # noqa: ASYNC110 - it closes itself at the end
                await asyncio.sleep(0)
        return made

    return asyncio.run(main())


def opened(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)


def test_what_the_guest_prints_is_what_is_written(tmp_path: Path) -> None:
    output = opened(tmp_path / "log")
    data = os.urandom(300_000)
    relay(data, output)
    os.close(output)
    assert (tmp_path / "log").read_bytes() == data


def test_a_long_log_keeps_its_newest_part_and_says_so(tmp_path: Path) -> None:
    output = opened(tmp_path / "log")
    os.truncate(tmp_path / "log", LIMIT)
    relay(b"the end", output)
    os.close(output)
    written = (tmp_path / "log").read_bytes()
    assert written.startswith(CUT)
    assert written.endswith(b"the end")
    assert len(written) == len(CUT) + KEPT + len(b"the end")


def test_a_reader_that_left_does_not_stop_the_guest() -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    relay(b"x" * 100_000, write_end)
    os.close(write_end)


def test_a_full_disk_does_not_stop_the_guest() -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    relay(b"x" * 100_000, full)
    os.close(full)


def test_the_bound_is_a_few_mebibytes() -> None:
    assert serial.KEPT < serial.LIMIT <= 16 << 20


def test_a_limited_console_drops_and_counts_what_is_too_much(tmp_path: Path) -> None:
    output = opened(tmp_path / "log")
    made = relay(b"x" * 10_000, output, TokenBucket(size=1000, refill_time=3_600_000, one_time_burst=500))
    os.close(output)
    assert len((tmp_path / "log").read_bytes()) == 1500
    assert (made.written, made.dropped) == (1500, 8500)


def test_a_bucket_fills_with_time_and_never_over() -> None:
    bucket = Bucket(TokenBucket(size=100, refill_time=100))
    assert bucket.take(1000) == 100
    time.sleep(0.03)
    assert 20 <= bucket.take(1000) <= 100
    time.sleep(0.2)
    assert bucket.take(1000) == 100
    assert Bucket(TokenBucket(size=0, refill_time=100)).take(1000) == 1000
    assert Bucket(TokenBucket(size=5, refill_time=0)).take(1000) == 1000


def typed(source: int, act: Callable[[], None]) -> bytes:
    """What reaches the guest of what `act` types into the other end of `source`."""

    async def main() -> bytes:
        ours, theirs = socket.socketpair()
        made = SerialRelay(ours, 1)
        made.start()
        typing = Typing(source, made)
        typing.start()
        act()
        theirs.setblocking(False)
        try:
            async with asyncio.timeout(0.5):
                data = await asyncio.get_running_loop().sock_recv(theirs, 4096)
        except TimeoutError:
            data = b""
        typing.close()
        typing.close()
        made.close()
        theirs.close()
        return data

    return asyncio.run(main())


def write(sink: int, data: bytes) -> None:
    assert os.write(sink, data) == len(data)


def test_what_is_piped_in_is_typed_to_the_guest() -> None:
    source, sink = os.pipe()
    assert typed(source, lambda: write(sink, b"root\n")) == b"root\n"
    os.close(source)
    os.close(sink)


def test_a_terminal_in_the_background_is_left_alone() -> None:
    main, other = os.openpty()
    before = termios.tcgetattr(other)
    assert typed(other, lambda: None) == b""
    assert termios.tcgetattr(other) == before
    os.close(main)
    os.close(other)


def test_a_file_or_nothing_as_standard_input_is_no_keyboard(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"text")
    with (tmp_path / "file").open("rb") as file, Path("/dev/null").open("rb") as null:
        assert typed(file.fileno(), lambda: None) == b""
        assert typed(null.fileno(), lambda: None) == b""


def test_what_the_guest_does_not_take_yet_waits_in_the_pipe() -> None:
    """A long paste arrives whole, however slowly the guest reads."""
    data = os.urandom(1 << 20)

    async def main() -> bytes:
        source, sink = os.pipe()
        ours, theirs = socket.socketpair()
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        made = SerialRelay(ours, 1)
        made.start()
        typing = Typing(source, made)
        typing.start()
        theirs.setblocking(False)
        loop = asyncio.get_running_loop()
        writing = loop.run_in_executor(None, _write_all, sink, data)
        taken = bytearray()
        async with asyncio.timeout(30):
            while len(taken) < len(data):
                taken += await loop.sock_recv(theirs, 1000)
            await writing
        typing.close()
        made.close()
        for end in (source, sink):
            os.close(end)
        theirs.close()
        return bytes(taken)

    assert asyncio.run(main()) == data


def _write_all(sink: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(sink, view) :]


def test_typing_ends_well_while_the_guest_takes_nothing() -> None:
    async def main() -> None:
        source, sink = os.pipe()
        ours, theirs = socket.socketpair()
        made = SerialRelay(ours, 1)
        made.start()
        typing = Typing(source, made)
        typing.start()
        os.set_blocking(sink, False)
        full = False
        async with asyncio.timeout(30):
            while not full:
                try:
                    os.write(sink, b"x" * 4096)
                except BlockingIOError:
                    # full only when the relay has had its turn and left it so
                    await asyncio.sleep(0.01)
                    full = not select.select([], [sink], [], 0)[1]
                await asyncio.sleep(0)
        theirs.close()
        typing.close()
        made.close()
        for end in (source, sink):
            os.close(end)

    asyncio.run(main())
