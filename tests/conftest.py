"""Every run, of whatever level, leaves the machine as it found it."""

import signal
import time
from collections.abc import Iterator

import pytest

from tests.support.leaks import difference, mark_this_run, snapshot


@pytest.fixture(scope="session", autouse=True)
def nothing_is_left(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    mark_this_run()
    # what a job in the background, or one below nohup, ignores would be ignored by every program that a test starts
    for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, usual)
    base = tmp_path_factory.getbasetemp()
    before = snapshot(base)
    yield
    deadline = time.monotonic() + 10  # what has been told to end may take a moment
    while (left := difference(before, snapshot(base))) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not left, f"the tests left behind: {left}"
