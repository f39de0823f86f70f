"""Streams to a guest's agent: what a good one gives, and what a hostile one cannot do."""

import asyncio
import contextlib
import itertools
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from banger.client import guest as client
from banger.client import tunnel
from banger.client.ports import listening_ports
from banger.client.ssh import host_keys
from banger.model.documents import VmDocument
from banger.model.errors import BangerError, Conflict, GuestUnreachable, Invalid, Unsupported
from tests.unit.client import fake

LIMIT_S = 10.0  # far above what the shortened deadlines come to


def connect_async(vm: VmDocument) -> None:
    asyncio.run(_open_and_close(vm))


async def _open_and_close(vm: VmDocument) -> None:
    (await tunnel.open_tunnel(vm, "localhost", 80)).stream.close()


USES: dict[str, Callable[[VmDocument], object]] = {
    "open_tunnel": lambda vm: client.open_tunnel(vm, "localhost", 80),
    "open_tunnel for a loop": connect_async,
    "upgrade": lambda vm: client.upgrade(vm, "/files", "banger-files", {"mode": "read"}),
    "get_document": lambda vm: client.get_document(vm, "/info"),
    "listening_ports": listening_ports,
    "host_keys": host_keys,
}


def after_request(serve: fake.Serve) -> fake.Serve:
    def served(stream: socket.socket) -> None:
        fake.read_until(stream, b"\n")
        stream.sendall(fake.OK)
        if fake.read_until(stream, b"\r\n\r\n").startswith(b"POST"):
            fake.read_until(stream, b"}")
        serve(stream)

    return served


def for_ever(data: bytes) -> fake.Serve:
    def serve(stream: socket.socket) -> None:
        while True:
            stream.sendall(data)

    return serve


def drip(data: bytes) -> fake.Serve:
    """One byte at a time, quicker than any deadline of a single receive."""

    def serve(stream: socket.socket) -> None:
        for byte in itertools.cycle(data):
            stream.sendall(bytes((byte,)))
            time.sleep(0.02)

    return serve


def silence(stream: socket.socket) -> None:
    while stream.recv(65536):
        pass


def leave(_: socket.socket) -> None:
    pass


def both(data: bytes, then: fake.Serve) -> fake.Serve:
    def serve(stream: socket.socket) -> None:
        stream.sendall(data)
        then(stream)

    return serve


HOSTILE: dict[str, fake.Serve] = {
    "no handshake": silence,
    "closes at once": leave,
    "refuses the port": lambda stream: stream.sendall(b"NO\n"),
    "endless handshake": for_ever(b"OK 11111"),
    "dripping handshake": drip(b"O"),
    "silence": after_request(silence),
    "closes after the request": after_request(leave),
    "garbage": after_request(lambda stream: stream.sendall(b"\x00\xff\r\n\r\n" * 9)),
    "endless head": after_request(for_ever(b"HTTP/1.1 200 OK\r\nX: y\r\n")),
    "dripping head": after_request(drip(b"HTTP/1.1 ")),
    "no status": after_request(lambda stream: stream.sendall(b"HTTP/1.1 2\r\n\r\n")),
    "another protocol": after_request(lambda stream: stream.sendall(b"SSH-2.0-OpenSSH\r\n\r\n")),
    "huge refusal": after_request(both(b"HTTP/1.1 503 No\r\n\r\n", for_ever(b"x" * 65536))),
    "refusal that never ends": after_request(both(b"HTTP/1.1 503 No\r\n\r\n{", silence)),
    "nested refusal": after_request(lambda stream: stream.sendall(b"HTTP/1.1 500 No\r\n\r\n" + b"[" * 500_000)),
    "refusal that is a list": after_request(lambda stream: stream.sendall(fake.answer("500 No", ["x"]))),
}


@pytest.fixture
def short_deadlines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "CONNECT_S", 0.3)
    monkeypatch.setattr(client, "ANSWER_S", 0.5)


@pytest.mark.usefixtures("short_deadlines")
@pytest.mark.parametrize("serve", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_a_hostile_agent_is_unreachable_and_soon_so(
    tmp_path: Path, use: Callable[[VmDocument], object], serve: fake.Serve
) -> None:
    with fake.listening(tmp_path / "v", serve):
        begun = time.monotonic()
        with pytest.raises(GuestUnreachable) as caught:
            use(fake.document(tmp_path / "v"))
    assert time.monotonic() - begun < LIMIT_S
    assert caught.value.message.startswith("demo cannot be reached: ")
    assert caught.value.hint == "banger vm health demo"


_BODIES: dict[str, fake.Serve] = {
    "huge": both(b"HTTP/1.1 200 OK\r\n\r\n", for_ever(b" " * 65536)),
    "without an end": both(b"HTTP/1.1 200 OK\r\n\r\n{", silence),
    "dripping": both(b"HTTP/1.1 200 OK\r\n\r\n", drip(b"[")),
    "nested": lambda stream: stream.sendall(b"HTTP/1.1 200 OK\r\n\r\n" + b"[" * 500_000),
    "a list": lambda stream: stream.sendall(fake.answer("200 OK", [])),
    "other fields": lambda stream: stream.sendall(fake.answer("200 OK", {"x": 1})),
    "wrong kinds": lambda stream: stream.sendall(fake.answer("200 OK", {"ports": [7], "ssh_host_keys": [7]})),
    "no text": lambda stream: stream.sendall(b"HTTP/1.1 200 OK\r\n\r\n\xff\xfe"),
}


@pytest.mark.usefixtures("short_deadlines")
@pytest.mark.parametrize("body", _BODIES.values(), ids=_BODIES)
@pytest.mark.parametrize("use", [listening_ports, host_keys])
def test_a_document_that_makes_no_sense(tmp_path: Path, use: Callable[[VmDocument], object], body: fake.Serve) -> None:
    with fake.listening(tmp_path / "v", after_request(body)), pytest.raises(GuestUnreachable):
        use(fake.document(tmp_path / "v"))


@pytest.mark.parametrize(
    ("state", "hint"),
    [
        ("stopped", "banger vm start demo"),
        ("failed", "banger vm start demo"),
        ("paused", "banger vm resume demo"),
        ("creating", "`banger operation list` shows what goes on"),
    ],
)
@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_a_machine_that_does_not_run(
    tmp_path: Path, use: Callable[[VmDocument], object], state: str, hint: str
) -> None:
    with pytest.raises(Conflict) as caught:
        use(fake.document(tmp_path / "none", state=state))
    assert (caught.value.message, caught.value.hint) == (f"demo is {state}, not running", hint)


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_no_socket_is_no_guest(tmp_path: Path, use: Callable[[VmDocument], object]) -> None:
    with pytest.raises(GuestUnreachable, match="No such file"):
        use(fake.document(tmp_path / "none"))


@pytest.mark.parametrize(
    ("status", "kind", "said"),
    [
        ("400 Bad Request", Invalid, "demo refused: a?[31mb"),
        ("404 Not Found", Unsupported, "too old"),
        ("502 Bad Gateway", Conflict, "demo: a?[31mb"),
        ("504 Gateway Timeout", Conflict, "demo: a?[31mb"),
        ("503 Service Unavailable", GuestUnreachable, "its agent answered 503: a?[31mb"),
        ("204 No Content", GuestUnreachable, "its agent answered 204"),
    ],
)
@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_refusals_are_told_without_control_characters(
    tmp_path: Path, use: Callable[[VmDocument], object], status: str, kind: type[BangerError], said: str
) -> None:
    serve = after_request(lambda stream: stream.sendall(fake.answer(status, {"error": "a\x1b[31mb"})))
    with fake.listening(tmp_path / "v", serve), pytest.raises(kind) as caught:
        use(fake.document(tmp_path / "v"))
    assert said in caught.value.message


def test_a_tunnel_is_the_stream_from_its_first_byte(tmp_path: Path) -> None:
    """What the agent sends in one piece with its answer is the guest's first word, not ours."""
    serve = after_request(lambda stream: stream.sendall(b"HTTP/1.1 200 OK\r\nX: y\r\n\r\n220 hello\r\n\r\n"))
    with fake.listening(tmp_path / "v", serve):
        vm = fake.document(tmp_path / "v")
        with client.open_tunnel(vm, "localhost", 80) as stream:
            assert stream.gettimeout() is None
            assert fake.read_until(stream, b"\r\n\r\n") == b"220 hello\r\n\r\n"

        async def early() -> bytes:
            opened = await tunnel.open_tunnel(vm, "localhost", 80)
            with opened.stream:
                loop = asyncio.get_running_loop()
                return opened.early + await loop.sock_recv(opened.stream, 100)

        assert asyncio.run(early()) == b"220 hello\r\n\r\n"


def test_a_tunnel_carries_bytes_and_the_end_of_each_direction(tmp_path: Path) -> None:
    with fake.guest(tmp_path) as guest, fake.service(fake.echo) as port:
        with client.open_tunnel(guest.vm, "127.0.0.1", port, wait_s=2.5) as stream:
            stream.sendall(b"hello")
            assert stream.recv(5, socket.MSG_WAITALL) == b"hello"
            stream.shutdown(socket.SHUT_WR)
            assert stream.recv(1) == b""
        assert "Banger-Wait: 2.5\r\n" in guest.requests[0]


@pytest.mark.parametrize("host", ["a b", "a\r\nX: y", "", "häuser", "a/b", "x" * 300])
def test_a_host_cannot_say_more_than_its_name(tmp_path: Path, host: str) -> None:
    with pytest.raises(Invalid):
        client.open_tunnel(fake.document(tmp_path / "none"), host, 80)


@pytest.mark.parametrize("port", [0, -1, 65536])
def test_a_port_has_sixteen_bits(tmp_path: Path, port: int) -> None:
    with pytest.raises(Invalid):
        client.open_tunnel(fake.document(tmp_path / "none"), "localhost", port)


def test_ports_are_checked_and_made_harmless(tmp_path: Path) -> None:
    told = {"port": 80, "protocol": "tcp", "addresses": ["0.0.0.0"], "pid": 4, "process": "x\x1b]0;y", "url": None}
    with fake.guest(tmp_path) as guest:
        guest.documents["/ports"] = {"ports": [told | {"port": 4096, "url": "http://localhost:4096/\x07"}, told]}
        ports = listening_ports(guest.vm)
        assert [(port["port"], port["process"], port["url"]) for port in ports] == [
            (80, "x?]0;y", None),
            (4096, "x?]0;y", "http://localhost:4096/?"),
        ]
        for wrong in ({"port": 0}, {"port": True}, {"protocol": "sctp"}, {"pid": "1"}, {"addresses": 7}):
            guest.documents["/ports"] = {"ports": [told | wrong]}
            with pytest.raises(GuestUnreachable):
                listening_ports(guest.vm)


class Daemon:
    """As much of `client.api.Client` as a dialer asks."""

    def __init__(self, *answers: VmDocument | BangerError) -> None:
        self.answers = list(answers)
        self.asked = 0

    def show_vm(self, reference: str) -> VmDocument:
        self.asked += 1
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, BangerError):
            raise answer
        return answer


def dial(dialer: tunnel.Dialer, port: int) -> None:
    async def body() -> None:
        (await dialer.open("127.0.0.1", port)).stream.close()

    asyncio.run(body())


def test_a_dialer_asks_the_daemon_only_after_a_failure(tmp_path: Path) -> None:
    stopped = fake.document(tmp_path / "v.sock", state="stopped")
    with fake.service(fake.echo) as port:
        with fake.guest(tmp_path) as guest:
            daemon = Daemon(stopped, stopped, guest.vm)
            dialer = tunnel.Dialer(daemon, guest.vm)  # type: ignore[arg-type]
            dial(dialer, port)
            assert daemon.asked == 0
        with pytest.raises(Conflict, match="stopped"):
            dial(dialer, port)
        with pytest.raises(Conflict, match="stopped"):
            dial(dialer, port)
        assert daemon.asked == 2
        with fake.guest(tmp_path) as guest:  # it has been started again
            dial(dialer, port)
            dial(dialer, port)
        assert daemon.asked == 3


def test_many_failed_dials_ask_the_daemon_once(tmp_path: Path) -> None:
    vm = fake.document(tmp_path / "none")
    daemon = Daemon(fake.document(tmp_path / "none", state="stopped"))

    async def body() -> list[object]:
        dialer = tunnel.Dialer(daemon, vm)  # type: ignore[arg-type]
        return list(await asyncio.gather(*(dialer.open("x", 1) for _ in range(50)), return_exceptions=True))

    assert {type(outcome) for outcome in asyncio.run(body())} == {Conflict}
    assert daemon.asked == 1


def test_a_dial_that_is_cancelled_leaves_no_thread_to_wait_for(tmp_path: Path) -> None:
    release = threading.Event()

    class Slow:
        def show_vm(self, _: str) -> VmDocument:
            release.wait(LIMIT_S)
            return fake.document(tmp_path / "none")

    async def body() -> None:
        dialer = tunnel.Dialer(Slow(), fake.document(tmp_path / "none"))  # type: ignore[arg-type]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.1):
                await dialer.open("x", 1)

    begun = time.monotonic()
    asyncio.run(body())
    assert time.monotonic() - begun < LIMIT_S / 2
    release.set()
