"""Every run, of whatever level, leaves the machine as it found it."""

from collections.abc import Iterator

import pytest

from tests.support.leaks import difference, snapshot


@pytest.fixture(scope="session", autouse=True)
def nothing_is_left() -> Iterator[None]:
    before = snapshot()
    yield
    left = difference(before, snapshot())
    assert not left, f"the tests left behind: {left}"
