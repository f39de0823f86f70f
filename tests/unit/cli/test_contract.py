"""What scripts rely on: exit codes, one error line and a hint, --json on stdout, a daemon that starts once."""

import argparse
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from banger.cli.parser import NOUNS, build
from tests.support.home import Home


@pytest.fixture(scope="module")
def home() -> Iterator[Home]:
    made = Home()
    yield made
    made.close()


@pytest.fixture
def fresh() -> Iterator[Home]:
    made = Home()
    yield made
    made.close()


@pytest.mark.parametrize(
    ("words", "status", "said", "hint"),
    [
        (("vm", "craete"), 2, "craete", "create"),
        (("wm", "list"), 2, "wm", "vm"),
        (("vm", "create", "--memroy", "1G"), 2, "--memroy", "--memory"),
        (("vm", "create", "--memory", "100M"), 2, "100 MiB", "128"),
        (("vm", "create", "--memory", "900T"), 2, "more than this host", "at most"),
        (("vm", "create", "--memory", "lots"), 2, "lots", "512M"),
        (("vm", "create", "--vcpu", "0"), 2, "0 vCPU", "1 to 32"),
        (("vm", "create", "--vcpu", "two"), 2, "two", "--help"),
        (("vm", "create", "--name", "Bad_Name"), 2, "Bad_Name", "small letters"),
        (("vm", "create", "one", "--name", "two"), 2, "two names", "give one"),
        (("vm", "create", "--name", "a" * 41), 2, "41", "40"),
        (("vm", "create", "--image", "debain"), 3, "debain", "bootstrap"),
        (("vm", "show", "nobody"), 3, "nobody", "vm list"),
        (("vm", "start", "nobody"), 3, "nobody", "vm list"),
        (("vm", "show"), 2, "no VM", "vm list"),
        (("vm", "delete"), 2, "no VM", "vm list"),
        (("vm", "delete", "nobody", "--yes"), 3, "nobody", "vm list"),
        (("vm", "exec", "nobody"), 2, "no command", "--"),
        (("vm", "exec", "nobody", "--", "true"), 3, "nobody", "vm list"),
        (("vm", "exec", "nobody", "-u", "root", "true"), 3, "nobody", "vm list"),
        (("vm", "exec", "--name", "nobody", "true"), 3, "nobody", "vm list"),
        (("vm", "list", "--", "x"), 2, "--", "--help"),
        (("image", "show", "nothing"), 3, "nothing", "bootstrap"),
        (("image", "bootstrap", "plan9"), 2, "plan9", "debian"),
        (("operation", "show", "zzz"), 3, "zzz", "operation list"),
        (("operation", "list", "--limit", "0"), 2, "limit", "schema"),
    ],
)
def test_a_mistake_gets_one_line_a_hint_and_its_exit_code(
    home: Home, words: tuple[str, ...], status: int, said: str, hint: str
) -> None:
    home.run("vm", "list")  # so that no start of the daemon is told in between
    text = home.error(*words, status=status)
    first, second = text.strip().split("\n", 1)
    assert said in first
    assert second.startswith("hint:  ")
    assert hint in second


def test_json_errors_are_one_document_on_stdout(home: Home) -> None:
    document = home.json("vm", "show", "nobody", status=3)
    assert document["error"]["code"] == "not_found"
    assert document["error"]["hint"]


def test_lists_are_json_lists_and_words_for_people(home: Home) -> None:
    assert home.json("vm", "list") == []
    assert home.json("image", "list") == []
    assert b"vm create" in home.run("vm", "list").stdout
    assert b"bootstrap" in home.run("image", "list").stdout
    assert home.run("vm", "list", "--quiet").stdout == b""


def test_help_of_every_command_is_shown_without_a_daemon(fresh: Home) -> None:
    for words in ((), ("vm",), ("image",), ("operation",), ("daemon",), ("vm", "create"), ("vm", "exec")):
        assert b"usage: banger" in fresh.run(*words, "--help").stdout
    assert fresh.run(status=2).stderr.startswith(b"usage: banger")
    assert not fresh.runtime.exists()


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_the_completion_script_knows_the_verbs(fresh: Home, shell: str, tmp_path: Path) -> None:
    script = fresh.run("completion", shell).stdout
    assert b"bootstrap" in script
    if shell == "bash":
        (tmp_path / "c").write_bytes(script)
        asked = 'source "$1"; COMP_WORDS=(banger vm cr); COMP_CWORD=2; _shtab_banger; echo "${COMPREPLY[@]}"'
        done = subprocess.run(["bash", "-c", asked, "-", str(tmp_path / "c")], capture_output=True, check=True)
        assert done.stdout.split() == [b"create"]


def test_versions(fresh: Home) -> None:
    assert fresh.run("--version").stdout.startswith(b"banger ")
    assert fresh.json("version")["daemon"] is None
    fresh.run("vm", "list")
    versions = fresh.json("version")
    assert versions["daemon"] == versions["banger"]


def test_ten_racing_commands_start_one_daemon(fresh: Home) -> None:
    racers = [fresh.start("vm", "list", "--json") for _ in range(10)]
    for racer in racers:
        out, err = racer.communicate(timeout=60)
        assert racer.returncode == 0, err
        assert json.loads(out) == []
    daemons = [p for p in fresh.processes() if "daemon" in p.cmdline()]
    assert len(daemons) == 1
    assert daemons[0].pid == fresh.daemon_pid()


def test_a_second_daemon_is_refused(fresh: Home) -> None:
    fresh.run("vm", "list")
    assert "running already" in fresh.error("daemon", "run", status=4)
    fresh.run("vm", "list")


def test_stop_ends_the_daemon_and_the_next_command_starts_another(fresh: Home) -> None:
    assert "not running" in fresh.error("daemon", "status", status=3)
    assert "not running" in fresh.error("daemon", "stop", status=3)
    fresh.run("vm", "list")
    before = fresh.daemon_pid()
    fresh.run("daemon", "stop")
    assert before not in {process.pid for process in fresh.processes()}
    assert not (fresh.runtime / "api.sock").exists()
    fresh.run("vm", "list")
    assert fresh.daemon_pid() != before


def test_a_killed_daemon_leaves_a_socket_that_harms_nobody(fresh: Home) -> None:
    fresh.run("vm", "list")
    fresh.kill_daemon()
    assert (fresh.runtime / "api.sock").exists()
    fresh.run("vm", "list")


def test_the_socket_and_directories_are_their_owners_alone(home: Home) -> None:
    home.run("vm", "list")
    assert (home.runtime / "api.sock").stat().st_mode & 0o777 == 0o600
    for directory in (home.runtime, home.state):
        assert directory.stat().st_mode & 0o777 == 0o700


def test_a_broken_configuration_is_named_and_no_daemon_stays(fresh: Home) -> None:
    (fresh.root / "config.toml").write_text("boot_timeout = 3\n")
    text = fresh.error("vm", "list", status=2)
    assert "boot_timeout" in text
    assert "config.toml" in text
    assert not psutil.wait_procs(fresh.processes(), 10)[1]


def test_a_state_directory_that_cannot_be_made_is_a_host_requirement(fresh: Home) -> None:
    (fresh.root / "state").write_text("in the way")
    assert "state" in fresh.error("vm", "list", status=5)


def test_a_runtime_path_too_long_for_sockets_is_refused_with_the_limit(fresh: Home) -> None:
    fresh.env["BANGER_RUNTIME_DIR"] = "/tmp/" + "x" * 100
    assert "too long" in fresh.error("vm", "list", status=2)
    fresh.env["BANGER_RUNTIME_DIR"] = str(fresh.runtime)


def test_output_to_a_closed_pipe_is_no_traceback(home: Home) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    child = home.start("--help", stdout=write_end)
    os.close(write_end)
    _, err = child.communicate(timeout=30)
    assert b"Traceback" not in err


def test_sigterm_stops_the_daemon_gracefully(fresh: Home) -> None:
    fresh.run("vm", "list")
    daemon = psutil.Process(fresh.daemon_pid())
    daemon.send_signal(signal.SIGTERM)
    daemon.wait(20)
    assert not (fresh.runtime / "api.sock").exists()


def raw(home: Home, request: bytes) -> bytes:
    with socket.socket(socket.AF_UNIX) as stream:
        stream.settimeout(10)
        stream.connect(str(home.runtime / "api.sock"))
        stream.sendall(request)
        reply = b""
        while chunk := stream.recv(65536):
            reply += chunk
        return reply


def test_the_api_describes_itself(home: Home) -> None:
    home.run("vm", "list")
    reply = raw(home, b"GET /schema HTTP/1.1\r\nHost: b\r\nConnection: close\r\n\r\n")
    head, body = reply.split(b"\r\n\r\n", 1)
    assert head.startswith(b"HTTP/1.1 200")
    paths = json.loads(body)["paths"]
    assert {"/vms", "/vms/{ref}", "/images", "/images/bootstrap", "/operations/{ref}/events", "/daemon"} <= set(paths)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b'{"vcpus": 2}', "vcpus"),
        (b'{"vcpu": "two"}', "vcpu"),
        (b'{"memory_mib": 1.5}', "memory_mib"),
        (b"{", "malformed"),
        (b"[]", "object"),
    ],
)
def test_a_malformed_body_is_refused_with_the_reason(home: Home, body: bytes, said: str) -> None:
    home.run("vm", "list")
    head = b"POST /vms HTTP/1.1\r\nHost: b\r\nConnection: close\r\nContent-Type: application/json\r\n"
    reply = raw(home, head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
    assert reply.startswith(b"HTTP/1.1 400"), reply
    error = json.loads(reply.split(b"\r\n\r\n", 1)[1])["error"]
    assert error["code"] == "invalid"
    assert said.lower() in error["message"].lower()
    assert home.json("vm", "list") == []


def test_a_client_that_breaks_off_harms_nobody(home: Home) -> None:
    home.run("vm", "list")
    for request in (b"", b"GET /vms HT", b"\x00\xff" * 100, b"POST /vms HTTP/1.1\r\nContent-Length: 9\r\n\r\n{"):
        with socket.socket(socket.AF_UNIX) as stream:
            stream.connect(str(home.runtime / "api.sock"))
            stream.sendall(request)
    assert home.json("vm", "list") == []


def test_python_dash_m_works_too(home: Home) -> None:
    done = subprocess.run([sys.executable, "-m", "banger", "--version"], env=home.env, capture_output=True, check=True)
    assert done.stdout.startswith(b"banger ")


def test_every_command_that_a_hint_or_a_page_names_exists() -> None:
    """A hint that cannot be typed is worse than none."""
    root = Path(__file__).parents[3]
    texts = [*(root / "src").rglob("*.py"), *(root / "docs").glob("*.md"), root / "README.md", root / "scripts/demo.sh"]
    named = {
        (found[1], found[2])
        for path in texts
        for found in re.finditer(
            r"\bbanger (vm|image|operation|daemon|[a-z]+) ([a-z]+)\b(?! by| with)", path.read_text()
        )
        if found[1] in NOUNS and found[1] not in ("version", "completion")
    }
    known = {(noun, verb) for noun in NOUNS for verb in verbs_of(noun)}
    assert len(named) > 10
    assert named <= known, named - known
    unknown_nouns = {
        found[1] for path in texts for found in re.finditer(r"[`\"]banger ([a-z]+)[ `\"]", path.read_text())
    } - set(NOUNS)
    assert not unknown_nouns


def verbs_of(noun: str) -> list[str]:
    for action in build([noun])._actions:
        if isinstance(action, argparse._SubParsersAction):
            nested = action.choices[noun]._actions
            return [verb for inner in nested if isinstance(inner, argparse._SubParsersAction) for verb in inner.choices]
    return []


HALF_MADE = """
import sys, types
from banger.cli import main

class Loop:
    def __del__(self):
        raise AttributeError("it was never made")

async def waited():
    pass

def interrupted(_):
    loop, never = Loop(), waited()
    raise KeyboardInterrupt

main.parse = lambda _: types.SimpleNamespace(handler=interrupted)
sys.exit(main.main([]))
"""


def test_an_interrupt_in_the_middle_of_anything_is_one_word() -> None:
    done = subprocess.run([sys.executable, "-c", HALF_MADE], capture_output=True, timeout=30, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, b"", b"interrupted\n")
