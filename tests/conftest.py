"""Every run, of whatever level, leaves the machine as it found it."""

import time
from collections.abc import Iterator

import pytest

from tests.support.leaks import difference, mark_this_run, snapshot


@pytest.fixture(scope="session", autouse=True)
def nothing_is_left() -> Iterator[None]:
    mark_this_run()
    before = snapshot()
    yield
    deadline = time.monotonic() + 10  # what has been told to end may take a moment
    while (left := difference(before, snapshot())) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not left, f"the tests left behind: {left}"
