"""Runs levels of tests: `python -m tests.support.levels unit host vm`, run by scripts/test.sh.

A machine's tests wait for an emulated processor most of the time, the others compute: they run beside each other, in
two pytests. What both print is kept in test-artifacts/ and shown one after the other, each as it comes; the last lines
name all that failed. Ctrl-C, and any end of this process, ends both as Ctrl-C ends one pytest.
"""

import ctypes
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
GROUPS = (("unit", "host"), ("vm",))  # those of one group run one after the other
NICE = 5
_FAILED = re.compile(r"^(?:FAILED|ERROR) .*$", re.MULTILINE)
_PR_SET_PDEATHSIG = 1
_LOOK_S = 0.2


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGINT)


class _Running:
    """One command with its output in a file."""

    def __init__(self, name: str, command: Sequence[str], log: Path) -> None:
        self.name = name
        self.log = log
        self.begun = time.monotonic()
        self.seconds = 0.0
        with log.open("wb") as output:
            # a session of its own: the terminal's Ctrl-C comes by way of this process, and once
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_end_with_parent,
            )

    def ended(self) -> bool:
        if self.process.poll() is None:
            return False
        self.seconds = self.seconds or time.monotonic() - self.begun
        return True

    def failed(self) -> list[str]:
        return _FAILED.findall(self.log.read_text(errors="replace"))


def run(commands: Mapping[str, Sequence[str]], logs: Path) -> int:
    """Run all commands at once, show what they print in their order, and return the first status that is not 0."""
    logs.mkdir(exist_ok=True)
    running: list[_Running] = []
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: _tell(running))
    for name, command in commands.items():
        running.append(_Running(name, command, logs / f"{name}.log"))
    for one in running:
        print(f"\n===== {one.name} =====", flush=True)
        _show(one, running)
    print(flush=True)
    for one in running:
        status, log = one.process.returncode, os.path.relpath(one.log)
        how = "passed" if status == 0 else f"status {status}"
        print(f"===== {one.name}: {how}, {one.seconds:.0f} s, {log}")
        for line in one.failed():
            print(line)
    sys.stdout.flush()
    return next((one.process.returncode for one in running if one.process.returncode), 0)


def _tell(running: Sequence[_Running]) -> None:
    for one in running:
        if one.process.poll() is None:
            one.process.send_signal(signal.SIGINT)


def _show(one: _Running, running: Sequence[_Running]) -> None:
    """Print what it has printed and prints until it ends."""
    with one.log.open("rb") as log:
        while True:
            ended = [other for other in running if other.ended()]  # all are asked: each notes when it has ended
            while data := log.read(65536):
                sys.stdout.buffer.write(data)
            sys.stdout.flush()
            if one in ended:
                return
            time.sleep(_LOOK_S)


def main(levels: Sequence[str]) -> int:
    known = [level for group in GROUPS for level in group]
    if strange := sorted({*levels} - {*known}):
        print(f"there is no level {strange[0]!r}; there are: {', '.join(known)}", file=sys.stderr)
        return 2
    commands: dict[str, list[str]] = {}
    for group in GROUPS:
        asked = [level for level in group if level in (levels or known)]
        for level in [*asked] if os.geteuid() != 0 else ():
            if level != "unit":
                print(f"skipping the {level} tests: they need root", file=sys.stderr)
                asked.remove(level)
        if asked:
            paths = [str(ROOT / "tests" / level) for level in asked]
            commands["-".join(asked)] = [sys.executable, "-m", "pytest", *paths]
    if len(commands) == 1:
        (command,) = commands.values()
        os.execv(command[0], command)
    if commands:
        # what computes has time; a machine has deadlines
        first = next(iter(commands))
        commands[first] = ["nice", "-n", str(NICE), *commands[first]]
    return run(commands, ROOT / "test-artifacts")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
