"""An image that machines use cannot be deleted, and a machine cannot start on one that is being deleted."""

import asyncio
import fcntl
import os
import subprocess
from pathlib import Path

import pytest

from banger.images.catalog import delete_image, find_image
from banger.images.locks import ImageLocks, image_alone, image_in_use
from banger.model.errors import Conflict, NotFound
from banger.paths import Paths
from tests.unit.images.test_catalog import make

VM, OTHER = "0123456789ab", "ba9876543210"


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return Paths(tmp_path / "state", tmp_path / "run", tmp_path / "cache")


@pytest.fixture
def root(paths: Paths) -> Path:
    make(paths, "debian")
    return paths.image("debian").root


def locked(root: Path) -> bool:
    """What `flock --nonblock --exclusive` would find."""
    with root.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def test_an_image_in_use_is_not_deleted_and_nothing_of_it_is_lost(paths: Paths, root: Path) -> None:
    with image_in_use(root), image_in_use(root):
        with pytest.raises(Conflict, match="debian is in use, by VMs") as caught:
            asyncio.run(delete_image(paths, "debian"))
        assert "banger vm list" in caught.value.hint
        find_image(paths, "debian")
    asyncio.run(delete_image(paths, "debian"))
    assert not root.exists()


def test_another_image_is_deleted_meanwhile(paths: Paths, root: Path) -> None:
    make(paths, "other")
    with image_in_use(root):
        asyncio.run(delete_image(paths, "other"))


def test_a_process_holds_the_lock_until_it_ends(root: Path) -> None:
    with image_in_use(root) as held:
        child = subprocess.Popen(["sleep", "60"], pass_fds=(held,))
        other = subprocess.Popen(["sleep", "60"])
    try:
        assert locked(root)
        child.kill()
        child.wait()
        assert not locked(root), "a process that was given nothing holds it"
    finally:
        for process in (child, other):
            process.kill()
            process.wait()


def test_the_daemon_holds_it_for_engines_that_cannot(root: Path) -> None:
    locks = ImageLocks()
    locks.acquire(VM, root)
    locks.acquire(VM, root)
    locks.acquire(OTHER, root)
    locks.release(VM)
    assert locked(root)
    locks.release(OTHER)
    locks.release(OTHER)
    assert not locked(root)


def test_a_machine_does_not_start_on_an_image_that_goes(paths: Paths, root: Path) -> None:
    with image_alone(root, "debian"):
        with pytest.raises(Conflict, match="being deleted"), image_in_use(root):
            pass
        with pytest.raises(Conflict, match="being deleted"):
            ImageLocks().acquire(VM, root)
    with image_in_use(root):
        pass
    asyncio.run(delete_image(paths, "debian"))
    with pytest.raises(NotFound, match="no root disk") as caught, image_in_use(root):
        pass
    assert "banger image list" in caught.value.hint


def test_whoever_opened_the_file_before_it_was_deleted_is_not_let_in(
    paths: Paths, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flock = fcntl.flock

    def late(descriptor: int, operation: int) -> None:
        monkeypatch.setattr(fcntl, "flock", flock)
        asyncio.run(delete_image(paths, "debian"))
        make(paths, "debian")
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    opened = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(NotFound), image_in_use(root):
        pass
    assert len(list(Path("/proc/self/fd").iterdir())) == opened
    with image_in_use(root):
        pass


@pytest.mark.parametrize("root_is", ["gone", "a link", "a pipe"])
def test_a_damaged_image_can_be_deleted(paths: Paths, root: Path, root_is: str) -> None:
    root.unlink()
    if root_is == "a link":
        root.symlink_to("/etc/passwd")
    if root_is == "a pipe":
        os.mkfifo(root)
    asyncio.run(delete_image(paths, "debian"))
    assert list(paths.images.iterdir()) == []
