"""The host's side against agents that lie, stall or flood."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from banger.guest.channel import Guest, decode_exit
from banger.guest.ready import MAX_DIALS, ReadyListener
from banger.guest.stream import connect
from banger.model.errors import GuestUnreachable, Unsupported
from banger.model.guest import ExecRequest, IdentityChange, Stream
from tests.unit.guest.hybrid import Handler, drop, listening

BOOT_ID = "9af49249-b06e-4d51-838f-eeaf30cb0c34"
_DEADLINE = 20.0
_TRUE = ExecRequest(argv=("true",))
_SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: banger-exec\r\n\r\n"


def against(folder: Path, handler: Handler, use: Callable[[Guest], Awaitable[object]]) -> None:
    """Use a guest whose vsock socket is served by `handler`; it must turn out unreachable, soon."""

    async def body() -> None:
        async with asyncio.timeout(_DEADLINE), listening(folder / "v.sock", handler):
            with pytest.raises(GuestUnreachable):
                await use(Guest(folder / "v.sock"))

    asyncio.run(body())


def saying(answer: bytes, *, repeat: bool = False, hold: bool = False) -> Handler:
    """An agent that accepts, reads the request and says `answer`: once or for ever; then closes, or holds."""

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(b"OK 5\n")
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        while repeat:
            writer.write(answer)
            await writer.drain()
        await writer.drain()
        if hold:
            await asyncio.Event().wait()

    return handler


async def health(guest: Guest) -> None:
    await guest.health(timeout=1)


async def info(guest: Guest) -> None:
    await guest.info(timeout=1)


async def services(guest: Guest) -> None:
    await guest.services(timeout=1)


async def ports(guest: Guest) -> None:
    await guest.ports(timeout=1)


async def identity(guest: Guest) -> None:
    await guest.identity(timeout=1)


async def set_identity(guest: Guest) -> None:
    await guest.set_identity(IdentityChange(hostname="x"), timeout=1)


async def give_password(guest: Guest) -> None:
    await guest.give_opencode_password("secret", timeout=1)


async def tunnel(guest: Guest) -> None:
    _reader, writer = await guest.tunnel("localhost", 22, 0.1, timeout=1)
    await drop(writer)
    raise GuestUnreachable("a tunnel was opened")  # a 200 is all that it takes; what follows is the guest's


async def execute(guest: Guest) -> None:
    async with await guest.exec(_TRUE, timeout=1) as stream:
        while (await stream.receive(timeout=1))[0] is not Stream.EXIT:
            pass


async def grow(guest: Guest) -> None:
    await guest.grow("/root", timeout=1)


EVERY = [health, execute, info, services, ports, identity, set_identity, give_password, tunnel, grow]


@pytest.mark.parametrize("line", [b"", b"NO\n", b"OK x\n", b"OK\n", b"OK 1" + b"0" * 99 + b"\n", b"x" * 300_000])
def test_handshake_that_is_none(tmp_path: Path, line: bytes) -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(line)
        await writer.drain()

    against(tmp_path, handler, health)


def test_handshake_that_never_comes(tmp_path: Path) -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.Event().wait()

    against(tmp_path, handler, lambda guest: connect(tmp_path / "v.sock", 1024, timeout=0.1))


def test_no_machine_says_so_with_a_next_step(tmp_path: Path) -> None:
    with pytest.raises(GuestUnreachable) as caught:
        asyncio.run(health(Guest(tmp_path / "v.sock")))
    assert "vm list" in caught.value.hint


@pytest.mark.parametrize("use", EVERY)
@pytest.mark.parametrize(
    ("answer", "repeat"),
    [
        (b"", False),
        (b"garbage\r\n\r\n", False),
        (b"HTTP/1.1\r\n\r\n", False),
        (b"HTTP/1.1 101 \xff\r\n\r\n", False),
        (b"HTTP/1.1 200 OK\r\nA: " + b"x" * 60_000, True),
        (b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 9_000, True),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n" + b"x" * 60_000, True),
        (b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", False),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", False),
        (b"HTTP/1.1 500 No\r\nContent-Length: 2\r\n\r\n[]", False),
        (b"HTTP/1.1 400 No\r\nContent-Length: 2\r\n\r\n{}", False),
        (b"HTTP/1.1 404 No\r\nContent-Length: 2\r\n\r\n{}", False),
        (b"HTTP/1.1 502 No\r\nContent-Length: 10737418240\r\n\r\n" + b"x" * 60_000, True),
        (b"HTTP/1.1 101 Yes\r\n\r\n" + b"\xff" * 60_000, True),
    ],
)
def test_answers_that_are_none(
    tmp_path: Path, use: Callable[[Guest], Awaitable[None]], answer: bytes, repeat: bool
) -> None:
    against(tmp_path, saying(answer, repeat=repeat), use)


@pytest.mark.parametrize("use", EVERY)
def test_agent_that_says_nothing(tmp_path: Path, use: Callable[[Guest], Awaitable[None]]) -> None:
    against(tmp_path, saying(b"", hold=True), use)


@pytest.mark.parametrize("use", EVERY)
def test_agent_that_drips(tmp_path: Path, use: Callable[[Guest], Awaitable[None]]) -> None:
    """One byte now and then keeps a connection alive, but not beyond the deadline."""

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(b"OK 5\nHTTP/1.1 200 OK\r\n")
        while True:
            writer.write(b"A")
            await asyncio.sleep(0.05)

    against(tmp_path, handler, use)


@pytest.mark.parametrize(
    "frames",
    [
        b"\x00\x00\x00\x00\x00",
        b"\x04\x00\x00\x00\x00",
        b"\x63\x00\x00\x00\x00",
        b"\x01\xff\xff\xff\xff",
        b"\x01\x00\x01\x00\x01",
        b"\x01\x00\x00\x00\x05abc",
        b"\x01",
        b"",
    ],
)
@pytest.mark.parametrize("hold", [True, False])
def test_frames_that_are_none(tmp_path: Path, frames: bytes, hold: bool) -> None:
    against(tmp_path, saying(_SWITCH + frames, hold=hold), execute)


DOCUMENTS: list[tuple[Callable[[Guest], Awaitable[None]], bytes]] = [
    (info, b'{"agent_version":"2"}'),
    (services, b'{"init":"systemd","services":[%b]}' % b",".join([b'{"name":"a","state":"b"}'] * 257)),
    (services, b'{"init":"%b","services":[]}' % (b"x" * 300)),
    (ports, b'{"ports":[{"port":0,"protocol":"tcp","addresses":[],"pid":null,"process":"","url":null}]}'),
    (ports, b'{"ports":[{"port":80,"protocol":"sctp","addresses":[],"pid":null,"process":"","url":null}]}'),
    (
        ports,
        b'{"ports":[{"port":80,"protocol":"tcp","addresses":["\\u001b[2J"],"pid":null,"process":"","url":null}]}',
    ),
    (
        ports,
        b'{"ports":[{"port":80,"protocol":"tcp","addresses":[],"pid":null,"process":"","url":"javascript:alert(1)"}]}',
    ),
    (identity, b'{"hostname":"a","machine_id":"../../etc"}'),
    (set_identity, b"[" * 60_000),
    (give_password, b"{}"),
    (grow, b'{"bytes":-1,"grown":true}'),
    (grow, b'{"bytes":1e300,"grown":true}'),
    (grow, b'{"bytes":1,"grown":"yes"}'),
]


@pytest.mark.parametrize(("use", "document"), DOCUMENTS)
def test_documents_that_are_none(tmp_path: Path, use: Callable[[Guest], Awaitable[None]], document: bytes) -> None:
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(document), document)
    against(tmp_path, saying(answer), use)


def test_an_agent_without_the_route_is_too_old(tmp_path: Path) -> None:
    async def body() -> None:
        answer = b'HTTP/1.1 404 No\r\nContent-Length: 14\r\n\r\n{"error":"no"}'
        async with asyncio.timeout(_DEADLINE), listening(tmp_path / "v.sock", saying(answer)):
            for use in (info, tunnel):
                with pytest.raises(Unsupported, match="too old"):
                    await use(Guest(tmp_path / "v.sock"))

    asyncio.run(body())


def test_tunnel_bytes_that_came_with_the_answer_are_the_first(tmp_path: Path) -> None:
    async def body() -> None:
        answer = b"HTTP/1.1 200 OK\r\nX: y\r\n\r\nSSH-2.0"
        async with asyncio.timeout(_DEADLINE), listening(tmp_path / "v.sock", saying(answer)):
            reader, writer = await Guest(tmp_path / "v.sock").tunnel("localhost", 22)
            assert await reader.read(-1) == b"SSH-2.0"
            await drop(writer)

    asyncio.run(body())


def test_tunnel_floods_no_memory(tmp_path: Path) -> None:
    """What the guest sends waits in the kernel, not here, until somebody reads it."""
    sent = 0

    async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await reader.readline()
        writer.write(b"OK 5\n")
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            writer.write(bytes(65536))
            await writer.drain()
            sent += 65536

    async def body() -> None:
        async with asyncio.timeout(_DEADLINE), listening(tmp_path / "v.sock", flood):
            _reader, writer = await Guest(tmp_path / "v.sock").tunnel("localhost", 22)
            before = -1
            while before != sent:
                before = sent
                await asyncio.sleep(0.1)
            assert sent < 4 << 20
            await drop(writer)

    asyncio.run(body())


@pytest.mark.parametrize("payload", [b"", b"{", b"[" * 60_000, b'{"x":' + b"[" * 60_000, b'{"status":"0"}', b"\xff"])
def test_exit_that_is_none(payload: bytes) -> None:
    with pytest.raises(GuestUnreachable):
        decode_exit(payload)


def test_request_deadline_holds_without_the_agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("banger.guest.stream.OVERTIME_SECONDS", 0.1)

    async def use(guest: Guest) -> None:
        await guest.run(ExecRequest(argv=("true",), timeout_s=0.1))

    against(tmp_path, saying(_SWITCH + b"\x01\x00\x00\x00\x01x", repeat=False, hold=True), use)


def test_error_text_from_the_guest_is_made_harmless(tmp_path: Path) -> None:
    text = b'{"error":"\\u001b[2Jbad"}'
    answer = b"HTTP/1.1 500 No\r\nContent-Length: %d\r\n\r\n%b" % (len(text), text)

    async def body() -> None:
        async with asyncio.timeout(_DEADLINE), listening(tmp_path / "v.sock", saying(answer)):
            with pytest.raises(GuestUnreachable, match="bad") as caught:
                await Guest(tmp_path / "v.sock").health(timeout=1)
        assert "\x1b" not in caught.value.message

    asyncio.run(body())


async def _dial(path: Path, data: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(data)
    return reader, writer


def test_ready_wakes_on_the_agents_line(tmp_path: Path) -> None:
    path = tmp_path / "v.sock_1025"
    path.write_text("left over")

    async def body() -> None:
        async with asyncio.timeout(_DEADLINE), ReadyListener(path) as ready:
            assert path.stat().st_mode & 0o777 == 0o600
            waiting = asyncio.create_task(ready.wait(timeout=10))
            _, first = await _dial(path, b"ready " + BOOT_ID[:10].encode())
            await first.drain()
            first.write(BOOT_ID[10:].encode() + b"\n")
            assert await waiting == BOOT_ID
            assert await ready.wait() == BOOT_ID
            await drop(first)
        assert not path.exists()

    asyncio.run(body())


def test_ready_is_not_moved_by_nonsense_and_bounds_who_dials(tmp_path: Path) -> None:
    path = tmp_path / "v.sock_1025"

    async def body() -> None:
        async with asyncio.timeout(_DEADLINE), ReadyListener(path) as ready:
            for line in (b"hello\n", b"ready x\n", b"r" * 100_000, b"ready " + b"g" * 36 + b"\n"):
                reader, writer = await _dial(path, line)
                with pytest.raises((ConnectionError, EOFError)):
                    await reader.readexactly(1)
                await drop(writer)
            idle = [await _dial(path, b"") for _ in range(MAX_DIALS)]
            reader, extra = await _dial(path, b"")
            assert await reader.read() == b""
            for _, writer in [*idle, (reader, extra)]:
                await drop(writer)
            with pytest.raises(GuestUnreachable, match="report"):
                await ready.wait(timeout=0.05)

    asyncio.run(body())


def test_ready_closes_whoever_is_still_connected(tmp_path: Path) -> None:
    path = tmp_path / "v.sock_1025"

    async def body() -> None:
        async with ReadyListener(path):
            reader, writer = await _dial(path, b"rea")
            await asyncio.sleep(0)
        async with asyncio.timeout(_DEADLINE):
            with pytest.raises((ConnectionError, EOFError)):
                await reader.readexactly(1)
        await drop(writer)

    asyncio.run(body())
