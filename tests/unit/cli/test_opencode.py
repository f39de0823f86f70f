"""banger vm opencode, as a person or a script uses it."""

import json
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.cli.daemon import LIMIT_S, Daemon, daemon
from tests.unit.client import fake

PASSWORD = "a-secret-of-32-characters-at-least"


@pytest.fixture
def ours(tmp_path: Path) -> Iterator[tuple[Daemon, int]]:
    """A daemon that knows a VM, and the port that stands for 4096 in it."""
    with daemon(tmp_path) as made, fake.guest(tmp_path) as guest, fake.service(fake.echo) as port:
        made.tell(guest.vm)
        access = {"port": port, "username": "opencode", "password": PASSWORD}
        made.answers["/vms/demo/opencode"] = access
        yield made, port


def ask(url: str, data: bytes) -> bytes:
    host, _, port = url.removeprefix("http://").rpartition(":")
    with socket.create_connection((host, int(port)), LIMIT_S) as stream:
        stream.sendall(data)
        stream.shutdown(socket.SHUT_WR)
        return stream.recv(1 << 16, socket.MSG_WAITALL)


def test_it_prints_url_and_credentials_and_forwards_until_ctrl_c(ours: tuple[Daemon, int]) -> None:
    child = ours[0].start("vm", "opencode", "demo", "--json")
    try:
        assert child.stdout is not None
        text = b""
        while not text.endswith(b"\n}\n"):
            text += os.read(child.stdout.fileno(), 4096)
        told = json.loads(text)
        assert (told["username"], told["password"]) == ("opencode", PASSWORD)
        assert ask(told["url"], b"hello") == b"hello"
        child.send_signal(signal.SIGINT)
        out, err = child.communicate(timeout=LIMIT_S)
        assert (child.returncode, out) == (0, b"")
        assert b"Traceback" not in err
    finally:
        child.kill()
        child.communicate()


def test_print_says_who_may_log_in_and_forwards_nothing(ours: tuple[Daemon, int]) -> None:
    made, port = ours
    done = made.run("vm", "opencode", "demo", "--print")
    assert done.returncode == 0
    assert done.stdout.decode().split() == ["port", str(port), "username", "opencode", "password", PASSWORD]


def test_attach_runs_the_local_client_with_the_credentials_in_its_environment_only(
    ours: tuple[Daemon, int], tmp_path: Path
) -> None:
    client = tmp_path / "bin" / "opencode"
    client.parent.mkdir()
    talk = (
        "import os,socket,sys;h,p=sys.argv[2][7:].split(':');s=socket.create_connection((h,int(p)));s.sendall(b'hi');"
        "s.shutdown(1);print(sys.argv[1:], s.recv(9), os.environ['OPENCODE_SERVER_USERNAME'], "
        "os.environ['OPENCODE_SERVER_PASSWORD']);sys.exit(7)"
    )
    client.write_text(f'#!/bin/sh\nexec python3 -c "{talk}" "$@"\n')
    client.chmod(0o755)
    path = f"{client.parent}:{os.environ['PATH']}"
    done = ours[0].run("vm", "opencode", "demo", "--attach", env={"PATH": path})
    said = done.stdout.decode()
    assert done.returncode == 7, done.stderr
    assert said.startswith("['attach', 'http://127.0.0.1:")
    assert said.endswith(f"b'hi' opencode {PASSWORD}\n")
    assert PASSWORD not in said.split("]")[0]


def test_attach_without_a_client_says_what_to_do_instead(ours: tuple[Daemon, int], tmp_path: Path) -> None:
    done = ours[0].run("vm", "opencode", "demo", "--attach", env={"PATH": str(tmp_path)})
    assert done.returncode == 5
    assert b"no opencode client" in done.stderr
    assert b"without --attach" in done.stderr


def test_mistakes(ours: tuple[Daemon, int], tmp_path: Path) -> None:
    made, _ = ours
    assert made.run("vm", "opencode", "nobody").returncode == 3
    assert made.run("vm", "opencode", "demo", "--port", "70000").returncode == 2
    made.tell(fake.document(tmp_path / "v.sock", state="stopped"))
    done: subprocess.CompletedProcess[bytes] = made.run("vm", "opencode", "demo")
    assert (done.returncode, done.stderr.splitlines()[-1]) == (4, b"hint:  banger vm start demo")
