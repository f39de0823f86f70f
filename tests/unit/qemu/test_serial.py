"""The console's relay: everything arrives, and a file never grows without end."""

import asyncio
import os
import socket
from pathlib import Path

from banger.qemu import serial
from banger.qemu.serial import CUT, KEPT, LIMIT, SerialRelay


def relay(data: bytes, output: int) -> None:
    async def main() -> None:
        ours, theirs = socket.socketpair()
        made = SerialRelay(ours, output)
        made.start()
        loop = asyncio.get_running_loop()
        theirs.setblocking(False)
        await loop.sock_sendall(theirs, data)
        theirs.close()
        async with asyncio.timeout(10):
            while ours.fileno() >= 0:  # noqa: ASYNC110 - it closes itself at the end
                await asyncio.sleep(0)

    asyncio.run(main())


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
