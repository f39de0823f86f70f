"""What is in the finished images of both flavours, read from their files; nothing boots."""

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from banger.guest import bundle
from banger.images.baseline import baseline
from banger.images.opencode import BUILDS, PROGRAM
from tests.support.home import Home


class Root:
    """A filesystem in a file, read without mounting it."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def _asked(self, request: str) -> bytes:
        asked = ["debugfs", "-R", request, str(self.file)]
        return subprocess.run(asked, check=True, capture_output=True, timeout=60).stdout

    def content(self, path: str) -> bytes:
        return self._asked(f"cat {path}")

    def stat(self, path: str) -> str:
        """As debugfs shows it; empty when it is not there."""
        return self._asked(f"stat {path}").decode()

    def target(self, path: str) -> str:
        """What a symbolic link leads to."""
        match = re.search(r'^Fast link dest: "(.*)"$', self.stat(path), re.MULTILINE)
        return match[1] if match else ""


def packages(images: Path, name: str) -> set[str]:
    listed: list[dict[str, Any]] = json.loads((images / name / "packages.json").read_text())
    return {package["name"] for package in listed}


@pytest.fixture(scope="module")
def root(home: Home, images: Path, opencode_image: str) -> Root:
    return Root(images / opencode_image / "root.ext4")


@pytest.fixture(scope="module")
def key(home: Home, opencode_image: str) -> str:
    """The line of the key that `vm ssh` uses, whose fingerprint the image names."""
    public = next((home.state / "ssh").resolve().glob("*.pub"))
    told = subprocess.run(["ssh-keygen", "-lf", str(public)], check=True, capture_output=True, text=True).stdout
    assert home.json("image", "show", opencode_image)["seed_key"] in told
    return " ".join(public.read_text().split()[:2])


def test_ssh_lets_the_runtime_key_in(root: Root, images: Path, opencode_image: str, key: str) -> None:
    seed = Root(images / opencode_image / "work-seed.ext4")
    assert key in root.content("/root/.ssh/authorized_keys").decode()
    assert key in seed.content("/.ssh/authorized_keys").decode()
    assert "Mode:  0600" in seed.stat("/.ssh/authorized_keys")
    assert b"prohibit-password" in root.content("/etc/ssh/sshd_config.d/banger.conf")
    assert root.target("/etc/systemd/system/multi-user.target.wants/ssh.service").endswith("/ssh.service")
    assert b"bash_completion" in seed.content("/.bashrc")


def test_the_agent_and_the_network_setup_are_there_and_start(root: Root) -> None:
    for path, (content, _) in bundle.agent_files().items():
        assert root.content(f"/{path}") == content, path
    for link, target in bundle.links().items():
        assert root.target(f"/{link}") == target, link
    wanted = "/etc/systemd/system/sysinit.target.wants"
    assert root.target(f"{wanted}/banger-agent.service").endswith("/banger-agent.service")
    assert root.target(f"{wanted}/banger-setup.service").endswith("/banger-setup.service")
    assert "Mode:  0755" in root.stat(f"/{bundle.LIBRARY}/banger-setup")
    assert root.content("/etc/default/locale") == b"LANG=C.UTF-8\n"


def test_opencode_is_there_and_waits_for_its_password(root: Root, images: Path, opencode_image: str) -> None:
    program = root.stat(PROGRAM)
    assert "Mode:  0755" in program
    size = re.search(r"Size: (\d+)", program)
    assert size is not None
    assert int(size[1]) > 100 * 2**20
    assert b"ExecStart=/usr/local/bin/opencode serve" in root.content("/etc/systemd/system/opencode.service")
    assert not root.target("/etc/systemd/system/multi-user.target.wants/opencode.service")
    assert BUILDS["glibc"].package in packages(images, opencode_image)


def test_the_full_image_has_the_baseline_and_the_minimal_one_has_not(images: Path, opencode_image: str) -> None:
    full, minimal = packages(images, opencode_image), packages(images, "debian")
    assert set(baseline("debian")) <= full
    assert not {"git", "build-essential", "ripgrep", BUILDS["glibc"].package} & minimal
    assert minimal < full


@pytest.mark.skipif("BANGER_TEST_IMAGES" in os.environ, reason="the images were made otherwise")
def test_the_minimal_image_was_made_from_the_cache(home: Home) -> None:
    shown = home.json("image", "show", "debian")
    assert re.search(r"; package lists of \d{4}-\d\d-\d\d$", shown["origin"])
    assert shown["has_opencode"] is False
