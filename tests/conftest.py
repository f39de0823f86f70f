"""Every run, of whatever level, leaves the machine as it found it."""

import signal
import time
from collections.abc import Iterator

import pytest

from tests.support.leaks import difference, mark_this_run, snapshot


@pytest.fixture(scope="session", autouse=True)
def nothing_is_left(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    mark_this_run()
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # as a shell's background jobs begin; the programs that the tests interrupt would ignore it as well
        signal.signal(signal.SIGINT, signal.default_int_handler)
    base = tmp_path_factory.getbasetemp()
    before = snapshot(base)
    yield
    deadline = time.monotonic() + 10  # what has been told to end may take a moment
    while (left := difference(before, snapshot(base))) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not left, f"the tests left behind: {left}"
