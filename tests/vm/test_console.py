"""The serial console as a person uses it, and a log that is followed through everything that may happen to its VM."""

import http.client
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from tests.support.home import BIN, Home
from tests.support.terminal import Terminal
from tests.vm.test_access import forwarding

PROMPT = ":~# "
COLOUR = re.compile(r"\x1b\[[0-9;]*m")


@contextmanager
def terminal(home: Home, *words: str) -> Iterator[Terminal]:
    """`banger WORDS...` in a terminal of its own."""
    ours = [f"{name}={value}" for name, value in home.env.items() if name.startswith(("BANGER_", "PYTHON"))]
    made = Terminal(["env", *ours, str(BIN / "banger"), *words], home.root)
    try:
        yield made
    finally:
        made.close()


def at_prompt(shown: Terminal) -> None:
    """Press Enter until a prompt is there: between two shells, keys are lost as on any serial line."""
    shown.wait(lambda: "attached to" in shown.shown, 60)
    begun = len(shown.shown)

    def prompted() -> bool:
        if PROMPT in COLOUR.sub("", shown.shown[begun:]):
            return True
        shown.type(b"\r")
        time.sleep(1)
        return False

    shown.wait(prompted, 120)


def printed(home: Home, name: str, text: str) -> None:
    home.run("vm", "exec", name, "--", "sh", "-c", f"echo {text} > /dev/console")


def test_a_shell_on_the_console(home: Home, booted: str) -> None:
    with terminal(home, "vm", "console", booted) as shown:
        at_prompt(shown)
        shown.type(b"echo $((6*7)) a~.b\r")
        shown.wait(lambda: "42 a~.b" in shown.shown, 30)
        shown.type(b"~?")
        shown.wait(lambda: "detaches, ~ ? shows this" in shown.shown, 10)
        shown.type(b"\r~.")
        assert shown.end(10) == 0
        assert f"detached from {booted}" in shown.shown
        assert shown.as_before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_detaches_and_sets_the_terminal_back(home: Home, booted: str, number: signal.Signals) -> None:
    with terminal(home, "vm", "console", booted) as shown:
        shown.wait(lambda: "attached to" in shown.shown, 60)
        shown.wait(lambda: not shown.as_before, 10)
        shown.send_signal(number)
        assert shown.end(10) == 128 + number
        assert shown.as_before


def test_piped_input_is_typed_and_output_goes_on(home: Home, booted: str) -> None:
    with terminal(home, "vm", "console", booted) as shown:
        at_prompt(shown)
    process = subprocess.Popen(
        [str(BIN / "banger"), "vm", "console", booted], env=home.env, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin is not None
    process.stdin.write(b"echo $((6*8))\n")
    process.stdin.close()
    until(process, b"48\r\n")
    process.send_signal(signal.SIGINT)
    assert finish(process) == 130


def test_following_a_log_ends_with_ctrl_c(home: Home, booted: str) -> None:
    with terminal(home, "vm", "logs", "-f", "-n", "3", booted) as shown:
        shown.wait(lambda: shown.shown, 60)
        printed(home, booted, "'marker\x1b[2Jeight\x1b[31mred\x1b[0m'")
        shown.wait(lambda: "markereight\x1b[31mred\x1b[0m" in shown.shown, 30)
        shown.type(b"\x03")
        assert shown.end(10) == 130
    engine = home.start("vm", "logs", "-f", "--source", "engine", booted)
    until(engine, b"banger-vmm")
    engine.send_signal(signal.SIGINT)
    assert finish(engine) == 130


def test_what_makes_no_sense_is_refused(home: Home, booted: str) -> None:
    assert "--follow" in home.error("vm", "logs", "-f", booted, "--json", status=2)
    assert "--json" in home.error("vm", "console", booted, "--json", status=2)
    assert "--escape" in home.error("vm", "console", booted, "--escape", "two", status=2)
    home.error("vm", "console", "nobody", status=3)
    home.error("vm", "logs", "-f", "nobody", status=3)


def until(process: "subprocess.Popen[bytes]", text: bytes, seconds: float = 60) -> bytes:
    """Read standard output until `text` has come."""
    assert process.stdout is not None
    descriptor, data = process.stdout.fileno(), b""
    os.set_blocking(descriptor, False)
    deadline = time.monotonic() + seconds
    while text not in data:
        assert time.monotonic() < deadline, data[-2000:]
        try:
            piece = os.read(descriptor, 65536)
        except BlockingIOError:
            time.sleep(0.02)
            continue
        assert piece, data[-2000:]
        data += piece
    return data


def finish(process: "subprocess.Popen[bytes]") -> int:
    """Its status, once it has ended by itself."""
    try:
        return process.wait(30)
    finally:
        process.kill()
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()


def told(process: "subprocess.Popen[bytes]") -> tuple[int, str]:
    """Its status and its standard error."""
    assert process.stderr is not None
    try:
        process.wait(60)
        return process.returncode, process.stderr.read().decode()
    finally:
        finish(process)


def test_through_the_daemons_death_restarts_and_the_vms_end(fresh: Home) -> None:
    """A forward, too."""
    fresh.run("vm", "create", "--name", "a")
    log = fresh.start("vm", "logs", "-f", "a")
    until(log, b"sysinit.target")
    with terminal(fresh, "vm", "console", "a") as shown, forwarding(fresh, "a", "0:22") as (local, _):
        at_prompt(shown)
        wait_for_banner(local)
        fresh.kill_daemon()
        shown.type(b"echo $((6*7))\r")
        shown.wait(lambda: "42" in shown.shown, 60)
        assert until(log, b"42").count(b"echo") == 1
        fresh.run("vm", "restart", "a")
        wait_for_banner(local)
        assert shown.end(30) == 0
        assert "a has stopped" in shown.shown
        assert shown.as_before
    # the new boot's log from its beginning, once
    printed(fresh, "a", "marker-9")
    seen = until(log, b"marker-9")
    assert seen.count(b"Reached target sysinit") == 1
    fresh.run("daemon", "stop")
    status, said = told(log)
    assert (status, "the daemon was stopped" in said) == (1, True)
    assert not (fresh.runtime / "api.sock").exists(), "it was started again"
    assert gone_with_the_vm(fresh, lambda: fresh.run("vm", "delete", "--yes", "a")) == 0


def wait_for_banner(local: str) -> None:
    deadline = time.monotonic() + 120
    while not banner(local):
        assert time.monotonic() < deadline, "no banner"
        time.sleep(0.2)


def banner(local: str) -> bool:
    """Whether an SSH server answers there."""
    connection = http.client.HTTPConnection(local, timeout=30)
    try:
        connection.connect()
        return connection.sock.recv(8) == b"SSH-2.0-"
    except OSError:
        return False
    finally:
        connection.close()


def gone_with_the_vm(home: Home, delete: Callable[[], object]) -> int:
    log = home.start("vm", "logs", "-f", "a")
    until(log, b"marker-9")
    delete()
    status, said = told(log)
    assert "a was deleted" in said
    return status
