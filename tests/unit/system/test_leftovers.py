"""Programs of a process that was killed."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import psutil
import pytest

from banger.system.leftovers import end_left_over

# starts a program whose child sleeps, and a session that shall live on; tells their pids, and waits to be killed
OWNER = """
import asyncio, subprocess, sys, time
from banger.system.process import own_programs, spawn, spawn_session
own_programs(sys.argv[1])
async def main():
    child = await spawn(["sh", "-c", "sleep 300 & wait"])
    session = spawn_session(["sleep", "300"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    print(child.pid, session.pid, flush=True)
    time.sleep(300)
asyncio.run(main())
"""


class Killed:
    """A process that was killed, and what it has started."""

    def __init__(self, name: str) -> None:
        owner = subprocess.Popen([sys.executable, "-c", OWNER, name], stdout=subprocess.PIPE, text=True)
        assert owner.stdout is not None
        program, session = (int(word) for word in owner.stdout.readline().split())
        self.program, self.session = psutil.Process(program), psutil.Process(session)
        owner.kill()
        owner.communicate()
        deadline = time.monotonic() + 10
        while not self.program.children():
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def close(self) -> None:
        for process in (self.program, self.session):
            if process.is_running():
                for one in (*process.children(), process):
                    one.send_signal(signal.SIGKILL)
        psutil.wait_procs([self.program, self.session], 10)


@pytest.fixture
def killed() -> Iterator[tuple[Killed, Killed]]:
    pair = Killed(f"one-{os.getpid()}"), Killed(f"other-{os.getpid()}")
    yield pair
    for one in pair:
        one.close()


def lives(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def test_its_programs_end_and_its_sessions_and_those_of_others_go_on(killed: tuple[Killed, Killed]) -> None:
    mine, other = killed
    children = mine.program.children()
    ended = asyncio.run(end_left_over(f"one-{os.getpid()}"))
    assert sorted(ended) == ["sh -c sleep 300 & wait", "sleep 300"]
    assert not any(lives(process) for process in (mine.program, *children))
    assert all(lives(process) for process in (mine.session, other.program, other.session))
    assert asyncio.run(end_left_over(f"one-{os.getpid()}")) == []
