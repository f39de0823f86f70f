"""banger vm forward, as a person or a script uses it."""

import contextlib
import json
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from banger.cli.forward import parse_forward
from banger.client.loopback import Forward
from banger.model.errors import Invalid
from tests.support.terminal import Terminal
from tests.unit.cli.daemon import BANGER, LIMIT_S, Daemon, daemon
from tests.unit.client import fake


@pytest.mark.parametrize(
    ("text", "local", "host", "port"),
    [
        ("80", 80, "localhost", 80),
        ("8080:80", 8080, "localhost", 80),
        ("0:4096", 0, "localhost", 4096),
        ("db:5432", 5432, "db", 5432),
        ("9:db:5432", 9, "db", 5432),
        ("9:[fd00::1]:5432", 9, "fd00::1", 5432),
        ("[::1]:80", 80, "::1", 80),
        ("8080:10.0.0.9:80", 8080, "10.0.0.9", 80),
        ("127.0.0.1:8080:80", 8080, "localhost", 80),
        ("localhost:8080:db:80", 8080, "db", 80),
        ("[::1]:8080:80", 8080, "localhost", 80),
    ],
)
def test_what_a_forward_may_look_like(text: str, local: int, host: str, port: int) -> None:
    assert parse_forward(text) == Forward(local, host, port)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        *((text, "is no forward") for text in ("", ":", "a", ":80", "80:", "1:2:3", "a:b:80", "a:b", "8080:", "[]:80")),
        *((text, "is no forward") for text in ("1:2:3:4:5", "²", "8080:80:", "::1:80", "[::1]80")),
        *((text, "no TCP port") for text in ("0", "65536", "8080:0", "70000:80", "9" * 30)),
        *((text, "loopback only") for text in ("0.0.0.0:8080:80", "192.168.1.5:8080:80", "*:8080:80", "[::]:8080:80")),
        ("0.0.0.0:8080", "loopback only"),
        ("a b:80", "is no host"),
    ],
)
def test_what_it_may_not(text: str, said: str) -> None:
    with pytest.raises(Invalid, match=said) as caught:
        parse_forward(text)
    assert caught.value.hint


@pytest.fixture
def ours(tmp_path: Path) -> Iterator[Daemon]:
    with daemon(tmp_path) as made, fake.guest(tmp_path) as guest:
        made.tell(guest.vm)
        yield made


@contextlib.contextmanager
def ending(child: "subprocess.Popen[bytes]") -> Iterator["subprocess.Popen[bytes]"]:
    try:
        yield child
    finally:
        if child.poll() is None:
            child.kill()
        child.communicate()


def ask(local: str, data: bytes) -> bytes:
    host, _, port = local.rpartition(":")
    with socket.create_connection((host, int(port)), LIMIT_S) as stream:
        stream.sendall(data)
        stream.shutdown(socket.SHUT_WR)
        return stream.recv(1 << 16, socket.MSG_WAITALL)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_says_where_carries_and_ends_with_the_totals(ours: Daemon, number: int) -> None:
    with fake.service(fake.echo) as one, fake.service(fake.echo) as two:
        with ending(ours.start("vm", "forward", "demo", f"0:127.0.0.1:{one}", f"0:{two}", "--json")) as child:
            assert child.stdout is not None
            assert child.stderr is not None
            lines = [child.stderr.readline().decode() for _ in range(2)]
            text = b""
            while not text.endswith(b"\n}\n"):
                text += os.read(child.stdout.fileno(), 4096)
            told = json.loads(text)
            assert told["vm"] == "demo"
            assert [(item["host"], item["port"]) for item in told["forwards"]] == [
                ("127.0.0.1", one),
                ("localhost", two),
            ]
            first, second = (item["local"] for item in told["forwards"])
            assert lines == [f"{first} -> demo 127.0.0.1, port {one}\n", f"{second} -> demo port {two}\n"]
            assert ask(first, b"hello") == b"hello"
            assert ask(second, b"world") == b"world"
            child.send_signal(number)
            out, err = child.communicate(timeout=LIMIT_S)
        assert (child.returncode, out, err) == (0, b"", b"forwarded 2 connections, 10 B up, 10 B down\n")


def test_on_a_terminal_the_traffic_is_live(ours: Daemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ours.env.items():
        monkeypatch.setenv(name, value)
    with fake.service(fake.echo) as port:
        terminal = Terminal([BANGER, "vm", "forward", "demo", f"0:127.0.0.1:{port}"], tmp_path)
        try:
            terminal.wait(lambda: "0 open, 0 connections" in terminal.shown, LIMIT_S)
            assert ask(terminal.shown.split(" -> ")[0].strip(), b"hello") == b"hello"
            terminal.wait(lambda: "0 open, 1 connection, 5 B up, 5 B down" in terminal.shown, LIMIT_S)
            os.write(terminal._master, b"\x03")
            assert terminal.end(LIMIT_S) == 0
            assert terminal.as_before
        finally:
            terminal.close()
    assert terminal.shown.endswith("forwarded 1 connection, 5 B up, 5 B down\r\n")


def test_a_refused_connection_is_shown_and_the_next_one_works(ours: Daemon) -> None:
    with fake.service(fake.echo) as port:
        pass
    with ending(ours.start("vm", "forward", "demo", f"0:127.0.0.1:{port}")) as child:
        assert child.stderr is not None
        local = child.stderr.readline().decode().split(" -> ")[0]
        with pytest.raises(ConnectionResetError):
            ask(local, b"x")
        said = child.stderr.readline().decode()
        assert said.startswith(f"port {port}: demo: cannot connect to 127.0.0.1:{port}")
        with fake.service(fake.echo, port):
            assert ask(local, b"back") == b"back"
        child.send_signal(signal.SIGINT)
        assert child.communicate(timeout=LIMIT_S)[1].endswith(b"4 B down, 1 failed\n")
        assert child.returncode == 0


def test_it_survives_the_daemon(ours: Daemon) -> None:
    with fake.service(fake.echo) as port, ending(ours.start("vm", "forward", "demo", f"0:127.0.0.1:{port}")) as child:
        assert child.stderr is not None
        local = child.stderr.readline().decode().split(" -> ")[0]
        ours.answers.clear()
        assert ask(local, b"still") == b"still"


def test_a_deleted_machine_ends_it(ours: Daemon, tmp_path: Path) -> None:
    with ending(ours.start("vm", "forward", "demo", "0:80")) as child:
        assert child.stderr is not None
        local = child.stderr.readline().decode().split(" -> ")[0]
        ours.answers.clear()
        (tmp_path / "v.sock").rename(tmp_path / "gone")
        with pytest.raises(ConnectionResetError):
            ask(local, b"x")
        assert b"error: there is no such VM\n" in child.communicate(timeout=LIMIT_S)[1]
        assert child.returncode == 3
    (tmp_path / "gone").rename(tmp_path / "v.sock")


def test_taken_ports_are_named_before_anything_is_said(ours: Daemon) -> None:
    with fake.service(fake.echo) as one, fake.service(fake.echo) as two:
        done = ours.run("vm", "forward", "demo", "0:80", f"{one}:80", f"{two}:80", "--json")
    assert done.returncode == 4
    assert json.loads(done.stdout)["error"]["code"] == "conflict"
    line, hint = done.stderr.decode().splitlines()
    assert f"local port {one} is taken" in line
    assert f"local port {two} is taken" in line
    assert "0:GUEST" in hint


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (("vm", "forward", "demo"), 2, "no port"),
        (("vm", "forward"), 2, "no VM"),
        (("vm", "forward", "demo", "http"), 2, "'http' is no forward"),
        (("vm", "forward", "demo", "0.0.0.0:8080:80"), 2, "loopback only"),
        (("vm", "forward", "nobody", "80"), 3, "no such VM"),
        (("vm", "forward", "--name", "nobody", "80"), 3, "no such VM"),
    ],
)
def test_mistakes(ours: Daemon, words: tuple[str, ...], status: int, said: str) -> None:
    done = ours.run(*words)
    assert done.returncode == status
    assert said in done.stderr.decode().splitlines()[0]


def test_a_machine_that_does_not_run_is_a_conflict(ours: Daemon, tmp_path: Path) -> None:
    ours.tell(fake.document(tmp_path / "v.sock", state="stopped"))
    done = ours.run("vm", "forward", "demo", "80")
    assert done.returncode == 4
    assert done.stderr == b"error: demo is stopped, not running\nhint:  banger vm start demo\n"
