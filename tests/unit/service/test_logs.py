"""Following a log that grows, is cut, is replaced, and goes."""

import asyncio
import contextlib
import dataclasses
import os
import shutil
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from banger.api.app import create_app
from banger.api.services import Services
from banger.engine.launch import previous_log
from banger.model.errors import Conflict, NotFound
from banger.qemu.serial import CUT, KEPT, LIMIT
from banger.service.logs import ANCHOR, LogFollowers, LogReader
from tests.unit.qemu.test_serial import opened, relay
from tests.unit.service.test_vms import Bench, bench

__all__ = ["bench"]
pytestmark = pytest.mark.filterwarnings("ignore::litestar.exceptions.base_exceptions.LitestarDeprecationWarning")


@pytest.fixture
def log(tmp_path: Path) -> Path:
    (tmp_path / "vm").mkdir()
    return tmp_path / "vm" / "console.log"


def reader(log: Path, seen: bytes = b"") -> LogReader:
    made = LogReader(log, lambda _: None)
    made.start_after(seen)
    return made


def everything(of: LogReader) -> bytes:
    data = b""
    while piece := of.read():
        data += piece
    return data


def behind(log: Path, seen: bytes) -> bytes:
    place = reader(log, seen)
    try:
        return everything(place)
    finally:
        place.close()


def append(log: Path, data: bytes) -> None:
    with log.open("ab") as file:
        file.write(data)


def rotate(log: Path) -> None:
    log.replace(previous_log(log))


def lines(first: int, count: int) -> bytes:
    return b"".join(b"line %08d of the console\n" % number for number in range(first, first + count))


def test_what_comes_is_read_once(log: Path) -> None:
    place = reader(log)
    assert place.read() == b""
    append(log, b"one\n")
    assert everything(place) == b"one\n"
    append(log, b"two\n")
    assert everything(place) == b"two\n"
    assert place.read() == b""
    place.close()


def test_the_end_first_when_asked_for(log: Path) -> None:
    append(log, b"0123456789")
    place = LogReader(log, lambda _: None)
    place.start_before_end(4)
    assert everything(place) == b"6789"
    place.close()


def test_a_new_file_is_followed_after_the_old_one_is_read_to_its_end(log: Path) -> None:
    append(log, b"old\n")
    place = reader(log)
    assert place.read() == b"old\n"
    append(log, b"last words\n")
    rotate(log)
    assert everything(place) == b"last words\n"
    append(log, b"new\n")
    assert everything(place) == b"new\n"
    place.close()


def cut(log: Path, last: bytes) -> None:
    """Let banger-vmm write what is one too much."""
    assert log.stat().st_size + len(last) > LIMIT
    output = opened(log)
    relay(last, output)
    os.close(output)
    assert log.stat().st_size == len(CUT) + KEPT + len(last)


def test_a_cut_neither_repeats_nor_loses(log: Path) -> None:
    """As banger-vmm cuts: what was read before lies somewhere else afterwards."""
    total = LIMIT // len(lines(0, 1))
    append(log, lines(0, total - 10))
    place = reader(log)
    read = everything(place)
    append(log, lines(total - 10, 10))
    cut(log, lines(total, 1))
    append(log, lines(total + 1, 10))
    assert read + everything(place) == lines(0, total + 11)
    place.close()


def test_who_lags_behind_a_cut_is_told_that_something_is_gone(log: Path) -> None:
    total = LIMIT // len(lines(0, 1))
    append(log, lines(0, 100))
    place = reader(log)
    everything(place)
    append(log, lines(100, total - 100))
    cut(log, lines(total, 1))
    assert everything(place) == CUT + lines(0, total)[-KEPT:] + lines(total, 1)
    place.close()


@pytest.mark.parametrize("count", [0, 1, 20])
@pytest.mark.parametrize("later", [0, 1, 20])
def test_a_place_is_found_again(log: Path, count: int, later: int) -> None:
    append(log, lines(0, count))
    seen = lines(0, count)[-ANCHOR:]
    append(log, lines(count, later))
    assert behind(log, seen) == lines(count, later)


@pytest.mark.parametrize("old", [1, 20])
@pytest.mark.parametrize("new", [0, 1, 20])
@pytest.mark.parametrize("seen", range(0, 41, 5))
def test_a_place_is_found_again_across_a_restart(log: Path, old: int, new: int, seen: int) -> None:
    if seen > old + new:
        return
    append(log, lines(0, old))
    rotate(log)
    append(log, lines(old, new))
    got = behind(log, lines(0, seen)[-ANCHOR:])
    # who has seen nothing yet is shown the log as it is now
    assert got == (lines(old, new) if seen == 0 else lines(seen, old + new - seen))


def test_who_cannot_be_placed_starts_with_the_log(log: Path) -> None:
    append(log, lines(0, 20))
    assert behind(log, b"x" * ANCHOR) == lines(0, 20)
    assert behind(log, b"x") == lines(0, 20)


async def following(followers: LogFollowers, log: Path) -> AsyncIterator[bytes]:
    stream = followers.follow(log, None, 1000)
    assert await anext(stream) == b""
    return stream


async def within(awaited: Awaitable[bytes]) -> bytes:
    async with asyncio.timeout(10):
        return await awaited


def test_growth_wakes_and_the_directorys_end_ends(log: Path) -> None:
    async def main() -> None:
        followers = LogFollowers()
        stream = await following(followers, log)
        for text in (b"one", b"two"):
            waiting = asyncio.ensure_future(anext(stream))
            await asyncio.sleep(0.05)
            assert not waiting.done()
            append(log, text)
            assert await within(waiting) == text
        waiting = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0.05)
        shutil.rmtree(log.parent)
        with pytest.raises(StopAsyncIteration):
            await within(waiting)
        assert len(followers) == 0
        with pytest.raises(Conflict):
            await following(followers, log)

    asyncio.run(main())


def test_closing_ends_every_stream_and_lets_none_begin(log: Path) -> None:
    async def main() -> None:
        followers = LogFollowers()
        waiting = [asyncio.ensure_future(anext(await following(followers, log))) for _ in range(3)]
        await asyncio.sleep(0.05)
        followers.close()
        async with asyncio.timeout(10):
            ended = await asyncio.gather(*waiting, return_exceptions=True)
        assert all(isinstance(end, StopAsyncIteration) for end in ended)
        with pytest.raises(Conflict, match="stopping"):
            await following(followers, log)

    asyncio.run(main())


def descriptors(below: Path) -> list[str]:
    """What this process has open below a directory, and what it watches."""
    found = []
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found.append(str(descriptor.readlink()))
    return sorted(name for name in found if "inotify" in name or name.startswith(str(below)))


def served(bench: Bench, then: Callable[[Path], Awaitable[None]], tmp_path: Path) -> None:
    """The daemon's API over the bench's service, on a socket."""

    given: dict[str, Any] = dict.fromkeys(field.name for field in dataclasses.fields(Services))
    services = Services(**given | {"vms": bench.service, "operations": bench.operations})

    async def main() -> None:
        path = tmp_path / "api"
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
            listener.listen()
            server = uvicorn.Server(uvicorn.Config(create_app(services), log_config=None, lifespan="off"))
            serving = asyncio.create_task(server._serve(sockets=[listener]))
            try:
                async with asyncio.timeout(30):
                    await then(path)
            finally:
                bench.service.end_streams()
                server.should_exit = True
                await serving

    asyncio.run(main())


async def request(path: Path, target: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, bytes]:
    stream, writer = await asyncio.open_unix_connection(path)
    writer.write(f"GET {target} HTTP/1.0\r\nHost: banger\r\n\r\n".encode())
    head = await stream.readuntil(b"\r\n\r\n")
    return stream, writer, head


def test_a_client_that_leaves_leaves_nothing_behind(bench: Bench, tmp_path: Path) -> None:
    state = tmp_path / "s" / "vms" / "0123456789ab"
    state.mkdir(parents=True)
    append(state / "console.log", b"booting\n")

    async def then(path: Path) -> None:
        tasks = len(asyncio.all_tasks())
        for _ in range(3):
            stream, writer, head = await request(path, "/vms/a/logs?follow=true")
            assert b" 200 " in head
            assert await stream.readexactly(8) == b"booting\n"
            append(state / "console.log", b"up\n")
            assert await stream.readexactly(3) == b"up\n"
            assert len(descriptors(tmp_path / "s")) == 2
            writer.close()
            while descriptors(tmp_path / "s") or len(asyncio.all_tasks()) > tasks:  # noqa: ASYNC110 - no event tells
                await asyncio.sleep(0.01)
            (state / "console.log").write_bytes(b"booting\n")

    served(bench, then, tmp_path)


def test_a_client_that_does_not_read_holds_up_nobody(bench: Bench, tmp_path: Path) -> None:
    state = tmp_path / "s" / "vms" / "0123456789ab"
    state.mkdir(parents=True)
    (state / "console.log").write_bytes(os.urandom(LIMIT))

    async def then(path: Path) -> None:
        _, idle, _ = await request(path, "/vms/a/logs?follow=true&limit=4194304")
        stream, writer, _ = await request(path, "/vms/a/logs?follow=true&limit=0")
        append(state / "console.log", b"up\n")
        assert await stream.readexactly(3) == b"up\n"
        writer.close()
        idle.close()

    served(bench, then, tmp_path)
    assert descriptors(tmp_path / "s") == []


def test_what_cannot_be_followed_is_told_by_the_status(bench: Bench, tmp_path: Path) -> None:
    async def then(path: Path) -> None:
        for target, status in (
            ("/vms/nobody/logs?follow=true", b" 404 "),
            ("/vms/a/logs?follow=true", b" 409 "),
            ("/vms/a/logs?follow=true&source=x", b" 400 "),
            ("/vms/a/logs?follow=true&after=x", b" 400 "),
        ):
            _, writer, head = await request(path, target)
            assert status in head, (target, head)
            writer.close()

    served(bench, then, tmp_path)
    with pytest.raises(NotFound):
        bench.service.logs("nobody", "console", 1)
