"""banger vm ssh, ssh-config and proxy, with a stand-in for ssh where its words and its end matter."""

import json
import os
import shlex
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from banger.cli.ssh import _remind
from banger.paths import default_paths
from tests.support.terminal import Terminal
from tests.unit.cli.daemon import BANGER, LIMIT_S, Daemon, daemon
from tests.unit.client import fake

AGENT = {"name": "agent", "ok": False, "detail": "nobody\x1b[0m answers", "hint": "banger vm logs demo"}
ENDED = {"name": "engine", "ok": False, "detail": "the VM is stopped", "hint": "banger vm start demo"}

UNHEALTHY = "demo is unhealthy: agent: nobody?[0m answers; try: banger vm logs demo"
STOPPED = "demo is stopped: engine: the VM is stopped; try: banger vm start demo"
Health = tuple[str, *tuple[dict[str, object], ...]]


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[fake.Guest]:
    with fake.guest(tmp_path) as made:
        yield made


@pytest.fixture
def ours(tmp_path: Path, guest: fake.Guest) -> Iterator[Daemon]:
    with daemon(tmp_path) as made:
        made.tell(guest.vm)
        made.health("healthy")
        yield made


def ssh(ours: Daemon, script: str) -> dict[str, str]:
    """A program called ssh that notes its words and then runs `script`."""
    programs = ours.root / "bin"
    programs.mkdir(exist_ok=True)
    program = programs / "ssh"
    program.write_text(f"#!/bin/sh\nprintf '%s\\n' \"$@\" > {shlex.quote(str(ours.root))}/words\n{script}\n")
    program.chmod(0o755)
    return {"PATH": f"{programs}:{os.environ['PATH']}"}


def test_the_streams_and_the_status_are_sshs(ours: Daemon) -> None:
    path = ssh(ours, "cat; echo oops >&2; exit 7")
    done = ours.run("vm", "ssh", "demo", "-u", "dev", "uptime", "--", "-A", input=b"hello", env=path)
    assert (done.returncode, done.stdout, done.stderr) == (7, b"hello", b"oops\n")
    words = (ours.root / "words").read_text().splitlines()
    assert words[-5:] == ["-l", "dev", "demo", "-A", "uptime"]
    known = ours.root / "state/vms/0123456789ab/known_hosts"
    assert known.read_text() == f"banger-0123456789ab {fake.KEY}\n"
    assert f'UserKnownHostsFile="{known}"' in words


def test_a_person_keeps_the_environment(ours: Daemon) -> None:
    own = {"SSH_AUTH_SOCK": "/agent", "LC_TIME": "C"}
    done = ours.run("vm", "ssh", "demo", env=own | ssh(ours, "echo $SSH_AUTH_SOCK $LC_TIME"))
    assert done.stdout == b"/agent C\n"


def test_a_flag_gives_the_name_and_leaves_the_words(ours: Daemon) -> None:
    assert ours.run("vm", "ssh", "--name", "demo", "uptime", env=ssh(ours, "")).returncode == 0
    assert (ours.root / "words").read_text().splitlines()[-2:] == ["demo", "uptime"]


@pytest.mark.parametrize(
    ("status", "state", "health", "said"),
    [
        (255, "running", ("healthy",), ""),
        (255, "running", ("unhealthy", AGENT), UNHEALTHY),
        (255, "stopped", ("stopped", ENDED), STOPPED),
        (3, "running", ("unhealthy", AGENT), ""),  # a command's own failure is nobody's business
        (3, "stopped", ("stopped", ENDED), STOPPED),
        (0, "stopped", ("stopped", ENDED), ""),
    ],
)
def test_the_reminder(ours: Daemon, guest: fake.Guest, status: int, state: str, health: Health, said: str) -> None:
    ours.health(*health)
    # the daemon knows of the end only while ssh runs
    marker = ours.root / "marker"
    os.mkfifo(marker)
    child = subprocess.Popen(
        [BANGER, "vm", "ssh", "demo"],
        env=ours.env | ssh(ours, f"cat {shlex.quote(str(marker))}; exit {status}"),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with marker.open("w"):
        ours.tell(fake.document(guest.path, state=state))
    out, err = child.communicate(timeout=LIMIT_S)
    assert child.returncode == status
    assert (out.decode(), err.decode()) == ("", f"banger: {said}\n" if said else "")


def test_other_host_keys_are_explained(ours: Daemon, guest: fake.Guest) -> None:
    path = ssh(ours, "exit 255")
    assert ours.run("vm", "ssh", "demo", env=path).stderr == b""
    guest.documents["/info"] = {"ssh_host_keys": [fake.KEY.replace("BBBB", "CCCC")]}
    known = ours.root / "state/vms/0123456789ab/known_hosts"
    said = f"banger: demo has other SSH host keys than at the first login; if you changed them, rm {known}\n"
    assert ours.run("vm", "ssh", "demo", env=path).stderr.decode() == said


def test_a_silent_daemon_cannot_keep_the_prompt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BANGER_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setattr("banger.cli.ssh.REMINDER_S", 0.2)
    monkeypatch.setattr("banger.client.guest.CONNECT_S", 0.2)

    def silent(stream: socket.socket) -> None:
        while stream.recv(65536):
            pass

    with fake.listening(tmp_path / "api.sock", silent), fake.listening(tmp_path / "v.sock", silent):
        begun = time.monotonic()
        _remind(fake.document(tmp_path / "v.sock"), default_paths(), 255)
        assert time.monotonic() - begun < LIMIT_S / 2
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signals_end_ssh_too(ours: Daemon, number: int) -> None:
    ready = ours.root / "ready"
    os.mkfifo(ready)
    child = subprocess.Popen(
        [BANGER, "vm", "ssh", "demo"],
        env=ours.env | ssh(ours, f"echo > {shlex.quote(str(ready))}; exec sleep 60"),
        stdin=subprocess.DEVNULL,
    )
    ready.read_text()
    child.send_signal(number)
    assert child.wait(LIMIT_S) == 128 + number


def test_control_c_is_sshs_and_control_z_stops_both(
    ours: Daemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = ssh(
        ours, "trap 'echo caught; kill -STOP $$; echo continued; exit 9' INT; echo ready; while :; do sleep 0.1; done"
    )
    for name, value in (ours.env | path).items():
        monkeypatch.setenv(name, value)
    script = f"set -m; {BANGER} vm ssh demo; echo stopped $?; fg; echo ended $?"
    terminal = Terminal(["bash", "--norc", "-c", script], tmp_path)
    try:
        terminal.wait(lambda: "ready" in terminal.shown, LIMIT_S)
        os.write(terminal._master, b"\x03")
        assert terminal.end(LIMIT_S) == 0
    finally:
        terminal.close()
    assert "stopped 148" in terminal.shown  # 128 + SIGTSTP: the shell was told
    assert terminal.shown.index("continued") > terminal.shown.index("stopped")
    assert "ended 9" in terminal.shown


def test_no_ssh_and_no_key_are_named(ours: Daemon, tmp_path: Path) -> None:
    (ours.root / "state/ssh/id_ed25519").unlink()
    done = ours.run("vm", "ssh", "demo")
    assert done.returncode == 5
    assert b"there is no SSH key" in done.stderr
    assert b"image bootstrap" in done.stderr


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (("vm", "ssh"), 2, "no VM"),
        (("vm", "ssh", "nobody"), 3, "no such VM"),
        (("vm", "ssh", "demo", "--json"), 2, "--json means nothing here"),
        (("vm", "ssh-config", "nobody"), 3, "no such VM"),
        (("vm", "proxy", "demo", "--port", "70000"), 2, "70000 is no TCP port"),
        (("vm", "proxy", "nobody"), 3, "no such VM; banger vm list"),
    ],
)
def test_mistakes(ours: Daemon, words: tuple[str, ...], status: int, said: str) -> None:
    done = ours.run(*words)
    assert done.returncode == status
    assert said in done.stderr.decode().splitlines()[0]


def test_the_block_and_the_options(ours: Daemon) -> None:
    block = ours.run("vm", "ssh-config", "demo").stdout.decode()
    assert block.startswith("Host demo.banger banger-demo\n    HostName banger-0123456789ab\n    User root\n")
    assert "vm proxy 0123456789ab --port 22" in block
    told = json.loads(ours.run("vm", "ssh-config", "demo", "--json").stdout)
    assert told["hosts"] == ["demo.banger", "banger-demo"]
    assert all(f"    {name} {value}\n" in block for name, value in told["options"].items())
    assert (ours.root / "state/vms/0123456789ab/known_hosts").exists()  # an editor asks nobody


def test_the_proxy_joins_its_streams_with_the_port(ours: Daemon) -> None:
    with fake.service(fake.echo) as port:
        done = ours.run("vm", "proxy", "demo", "--port", str(port), input=b"x" * 3_000_000)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == b"x" * 3_000_000


def test_the_proxy_ends_when_the_guest_does(ours: Daemon) -> None:
    with (
        fake.service(lambda stream: stream.sendall(b"bye")) as port,
        subprocess.Popen(
            [BANGER, "vm", "proxy", "demo", "--port", str(port)],
            env=ours.env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as child,
    ):
        assert child.stdout is not None
        assert child.stdout.read() == b"bye"  # although its own input is still open
        assert child.wait(LIMIT_S) == 0


def test_the_proxys_errors_are_one_line(ours: Daemon) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        done = ours.run("vm", "proxy", "demo", "--port", str(unused.getsockname()[1]))
    assert done.returncode == 4
    assert done.stderr.count(b"\n") == 1
    assert done.stderr.startswith(b"error: demo: cannot connect to localhost:")
