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
        status = one.process.returncode
        print(f"===== {one.name}: {'passed' if status == 0 else f'status {status}'}, {one.seconds:.0f} s, {one.log}")
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
    pytest = (sys.executable, "-m", "pytest")
    commands: dict[str, list[str]] = {}
    known = [level for group in GROUPS for level in group]
    for level in levels or known:
        if level not in known:
            print(f"there is no level {level!r}; there are: {', '.join(known)}", file=sys.stderr)
            return 2
        if level != "unit" and os.geteuid() != 0:
            print(f"skipping the {level} tests: they need root", file=sys.stderr)
            continue
        name = next("-".join(group) for group in GROUPS if level in group)
        commands.setdefault(name, [*pytest]).append(str(ROOT / "tests" / level))
    if len(commands) == 1:
        (command,) = commands.values()
        os.execv(command[0], command)
    return run(commands, ROOT / "test-artifacts")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
