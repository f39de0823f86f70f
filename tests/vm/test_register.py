"""Files that a person has become an image where they lie, and banger's own later, under a machine that runs."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.home import Home
from tests.vm.conftest import track


@pytest.fixture
def home() -> Iterator[Home]:
    """A banger without images."""
    made = track(Home())
    yield made
    made.close()


@pytest.fixture
def files(images: Path, tmp_path: Path) -> Iterator[Path]:
    """A root and a kernel, as a person has them."""
    directory = tmp_path / "files"
    directory.mkdir()
    sources = [str(images / "debian" / name) for name in ("root.ext4", "bzImage")]
    subprocess.run(["cp", "--sparse=always", "--reflink=auto", *sources, str(directory)], check=True)
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


def behind(overlay: Path) -> str:
    """The file that a root disk names, which may be in use."""
    argv = ["qemu-img", "info", "--force-share", "--output=json", str(overlay)]
    name: str = json.loads(subprocess.run(argv, capture_output=True, check=True).stdout)["backing-filename"]
    return name


def test_a_machine_of_registered_files_outlives_them_once_they_are_promoted(home: Home, files: Path) -> None:
    register = ["image", "register", "mine", "--rootfs", str(files / "root.ext4"), "--kernel", str(files / "bzImage")]
    image = home.json(*register)
    assert (image["managed"], image["distro"]) == (False, "debian")
    assert image["parts"]["root"]["file"] == str(files / "root.ext4")
    vm = home.json("vm", "create", "--name", "a", "--image", "mine")
    overlay = home.state / "vms" / vm["id"] / "root.qcow2"
    home.run("vm", "exec", "a", "--", "sh", "-c", "echo kept >/etc/kept; echo mine >/root/mine; sync")
    assert behind(overlay) == str(files / "root.ext4")

    os.utime(files / "root.ext4")
    assert "root.ext4 was changed after it was registered" in home.error("vm", "create", "--image", "mine", status=2)
    assert "root.ext4 was changed" in home.error("vm", "restart", "a", status=2)
    home.run("image", "register", "mine")

    promoted = home.json("image", "promote", "mine")
    assert (promoted["managed"], promoted["packages"] > 100) == (True, True)
    assert home.json("image", "promote", "mine") == promoted
    shutil.rmtree(files)
    assert home.run("vm", "exec", "a", "--", "cat", "/etc/kept").stdout == b"kept\n"
    told = home.run("vm", "restart", "a").stderr.decode()
    assert f"lay over {files / 'root.ext4'}" in told
    assert behind(overlay) == str(home.state / "images/mine/root.ext4")
    assert home.run("vm", "exec", "a", "--", "cat", "/etc/kept", "/root/mine").stdout == b"kept\nmine\n"
