"""Fixtures that climb: an image built once, a machine booted once; and what is kept of a failed test.

BANGER_TEST_IMAGES names a directory with a bootstrapped `debian` image to use instead of building one:
for working on one test; a full run builds its own, and `coding`.
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.home import Home

ARTIFACTS = Path(__file__).parents[2] / "test-artifacts"
CODING = "coding"
BOOTSTRAP_S = 1200
_homes: list[Home] = []


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "vm" in Path(item.fspath).parts:
            item.add_marker(pytest.mark.vm)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    report = yield
    if call.excinfo is not None and not call.excinfo.errisinstance(pytest.skip.Exception):
        _keep(item.name)
    return report


def _keep(test: str) -> None:
    """Console and engine logs of every VM, the daemon's log, and all operations with their events."""
    for home in _homes:
        if not home.root.exists():
            continue
        kept = ARTIFACTS / test / home.root.name
        shutil.rmtree(kept, ignore_errors=True)
        kept.mkdir(parents=True)
        for log in home.state.glob("**/*.log"):
            if not log.is_relative_to(home.state / "images"):
                shutil.copy(log, kept / "-".join(log.relative_to(home.state).parts))
        for source in home.state.glob("banger.db*"):
            shutil.copy(source, kept / source.name)
        (kept / "operations.json").write_bytes(home.run("operation", "list", "--json", status=None).stdout)


def track(home: Home) -> Home:
    _homes.append(home)
    return home


@pytest.fixture(scope="session")
def images() -> Iterator[Path]:
    """A directory with `coding`, a full image, and `debian`, a minimal one: most tests need no opencode, which is slow.

    The minimal one is made of what the full one has left in the cache, with no network at all.
    """
    if given := os.environ.get("BANGER_TEST_IMAGES"):
        yield Path(given)
        return
    if os.geteuid() != 0:
        pytest.skip("building an image needs root")
    home = track(Home())
    try:
        home.run("image", "bootstrap", "debian", "--name", CODING, timeout=BOOTSTRAP_S)
        home.run("image", "bootstrap", "debian", "--name", "debian", "--minimal", "--offline", timeout=BOOTSTRAP_S)
        home.run("daemon", "stop")
        yield home.state / "images"
    finally:
        home.close()


@pytest.fixture(scope="session")
def home(images: Path) -> Iterator[Home]:
    made = track(Home(images=images))
    yield made
    made.close()


@pytest.fixture(scope="session")
def opencode_image(home: Home) -> str:
    """The name of an image that has opencode."""
    if CODING not in {image["name"] for image in home.json("image", "list")}:
        home.run("image", "bootstrap", "debian", "--name", CODING, timeout=BOOTSTRAP_S)
    return CODING


@pytest.fixture(scope="session")
def booted(home: Home) -> str:
    """The name of a healthy VM that every test may use and none may change for the others."""
    home.run("vm", "create", "--name", "main")
    return "main"


@pytest.fixture
def fresh(images: Path) -> Iterator[Home]:
    """A banger of its own, for tests that kill things."""
    made = track(Home(images=images))
    yield made
    made.close()
