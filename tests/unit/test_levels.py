"""Two runs of tests beside each other: what they print is readable, what fails is told, both can be ended."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = """
import json, pathlib, sys
from tests.support.levels import run
sys.exit(run(json.loads(sys.argv[1]), pathlib.Path(sys.argv[2])))
"""
# ends by an interrupt only, and tidies up
HANGS = "trap 'echo tidy; touch {0}.tidied; exit 2' INT; touch {0}.begun; while :; do sleep 0.1; done"


def start(logs: Path, **commands: list[str]) -> "subprocess.Popen[str]":
    words = [sys.executable, "-c", SCRIPT, json.dumps(commands), str(logs)]
    return subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def end(running: "subprocess.Popen[str]") -> tuple[int, list[str]]:
    said, _ = running.communicate(timeout=60)
    return running.returncode, said.splitlines()


def test_what_both_print_comes_one_after_the_other_and_is_kept(tmp_path: Path) -> None:
    slow = ["sh", "-c", "echo one-a; sleep 0.5; echo one-b"]
    status, said = end(start(tmp_path, one=slow, two=["echo", "two-a"]))
    assert [line for line in said if line][:5] == ["===== one =====", "one-a", "one-b", "===== two =====", "two-a"]
    assert status == 0
    assert [line.split(",")[0] for line in said[-2:]] == ["===== one: passed", "===== two: passed"]
    assert [(tmp_path / f"{name}.log").read_text() for name in ("one", "two")] == ["one-a\none-b\n", "two-a\n"]


@pytest.mark.parametrize("codes", [(0, 3), (3, 0), (1, 3)])
def test_either_ones_status_is_the_whole_status(tmp_path: Path, codes: tuple[int, int]) -> None:
    one, two = (["sh", "-c", f"exit {code}"] for code in codes)
    status, said = end(start(tmp_path, one=one, two=two))
    assert status == next(code for code in codes if code)
    assert [f"status {code}" in line for code, line in zip(codes, said[-2:], strict=True)] == [
        code > 0 for code in codes
    ]


def test_what_fails_is_named_at_the_end(tmp_path: Path) -> None:
    commands = {}
    for name in ("red", "blue"):
        file = tmp_path / f"test_{name}.py"
        file.write_text(
            f"import pytest\n@pytest.mark.parametrize('x', ['a b', 'c'])\ndef test_{name}(x): assert x == 'c'\n"
        )
        # plugins of others take seconds to load
        commands[name] = [
            "env",
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD=1",
            sys.executable,
            "-m",
            "pytest",
            "-p",
            "no:cacheprovider",
            "-c",
            "/dev/null",
            str(file),
        ]
    status, said = end(start(tmp_path, **commands))
    assert status == 1
    told = said[next(number for number, line in enumerate(said) if line.startswith("===== red: ")) :]
    assert [line.partition("::")[2].partition(" - ")[0] for line in told] == ["", "test_red[a b]", "", "test_blue[a b]"]


@pytest.fixture
def hanging(tmp_path: Path) -> Iterator["subprocess.Popen[str]"]:
    commands = {name: ["sh", "-c", HANGS.format(tmp_path / name)] for name in ("one", "two")}
    running = start(tmp_path, **commands)
    wait_for(tmp_path, ".begun")
    yield running
    running.kill()
    running.wait()
    assert running.stdout is not None
    running.stdout.close()


def wait_for(here: Path, suffix: str) -> None:
    deadline = time.monotonic() + 60
    while not all((here / f"{name}{suffix}").exists() for name in ("one", "two")):
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_both_and_they_tidy_up(
    hanging: "subprocess.Popen[str]", tmp_path: Path, number: signal.Signals
) -> None:
    hanging.send_signal(number)
    status, said = end(hanging)
    assert (status, said.count("tidy")) == (2, 2)
    wait_for(tmp_path, ".tidied")


def test_killed_it_takes_both_along(hanging: "subprocess.Popen[str]", tmp_path: Path) -> None:
    hanging.kill()
    hanging.wait()
    wait_for(tmp_path, ".tidied")
