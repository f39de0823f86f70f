"""A VM that runs becomes an image: with what was made on its root disk, without what is only its own."""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.home import Home
from tests.vm.conftest import track

KEY = "/etc/ssh/ssh_host_ed25519_key.pub"  # made while the machine boots
SECRET, OF_HOME = "a-secret-of-one-person-91823", "something-of-roots-home-55371"


@pytest.fixture
def own(images: Path, tmp_path: Path) -> Iterator[Home]:
    """A banger whose images nobody else sees."""
    subprocess.run(["cp", "--archive", str(images.resolve().parent / "ssh"), str(tmp_path)], check=True)
    (tmp_path / "images").mkdir()
    copy = ["cp", "--archive", "--sparse=always", "--reflink=auto", str(images / "debian"), str(tmp_path / "images")]
    subprocess.run(copy, check=True)
    made = track(Home(images=tmp_path / "images"))
    yield made
    made.close()
    subprocess.run(["rm", "-rf", str(tmp_path / "images")], check=True)


def _sh(home: Home, vm: str, script: str) -> str:
    return home.run("vm", "exec", vm, "--", "sh", "-c", script).stdout.decode().strip()


def _part(home: Home, image: str, role: str) -> Path:
    file = home.json("image", "show", image)["parts"][role]["file"]
    return home.state / "images" / image / str(file)


def _holds(path: Path, text: str) -> bool:
    """Whether the bytes of a file hold a text, wherever; holes have none."""
    with path.open("rb") as file:
        size, at = file.seek(0, os.SEEK_END), 0
        while at < size:
            try:
                start = os.lseek(file.fileno(), at, os.SEEK_DATA)
            except OSError:
                return False  # a hole to the end
            at = os.lseek(file.fileno(), start, os.SEEK_HOLE)
            if text.encode() in os.pread(file.fileno(), at - start, start):
                return True
    return False


def test_a_running_vm_becomes_an_image_without_what_is_its_own(own: Home) -> None:
    own.run("vm", "create", "--name", "first", "--no-work-disk")
    _sh(own, "first", "echo marked >/etc/marker; mkdir /opt/tool; echo '#!/bin/sh' >/opt/tool/run")
    _sh(
        own,
        "first",
        f"mkdir -p /root/job /home/me; for n in $(seq 500); do echo {SECRET} $n; done >/root/job/notes",
    )
    _sh(own, "first", "cp /root/job/notes /var/log/app.log; cp /root/job/notes /home/me/.bash_history")
    # deleted before, and perhaps still in its blocks
    _sh(own, "first", "cp /root/job/notes /srv/gone; sync; rm /srv/gone")
    _sh(own, "first", f"until [ -s {KEY} ]; do sleep 0.1; done")
    before = _sh(own, "first", f"cat /etc/machine-id {KEY}")

    done = own.run("image", "commit", "first", "second", "--json")
    image = json.loads(done.stdout)
    assert (image["parents"], image["managed"]) == (["debian"], True)
    assert b"stood still for" in done.stderr
    assert _sh(own, "first", f"cat /etc/machine-id {KEY}") == before
    assert _sh(own, "first", "touch /etc/alive && head -n 1 /root/job/notes") == f"{SECRET} 1"
    assert own.json("vm", "show", "first")["state"] == "running"
    assert not list((own.state / "images").glob(".tmp*"))
    assert not list((own.state / "appliances").iterdir())

    root = _part(own, "second", "root")
    # nobody's any more, not even in the blocks that no file has
    assert not _holds(root, SECRET)
    assert not _holds(root, before.splitlines()[1].split()[1])
    assert _part(own, "second", "manifest").read_text() == _part(own, "debian", "manifest").read_text()
    own.run("vm", "delete", "--yes", "first")

    own.run("vm", "create", "--name", "next", "--image", "second")
    assert _sh(own, "next", "cat /etc/marker; ls /opt/tool") == "marked\nrun"
    gone = "/root/job /var/log/app.log /home/me/.bash_history"
    assert _sh(own, "next", f"for path in {gone}; do [ ! -e $path ] || echo $path; done") == ""
    _sh(own, "next", f"until [ -s {KEY} ]; do sleep 0.1; done")
    after = _sh(own, "next", f"cat /etc/machine-id {KEY}")
    assert set(after.splitlines()).isdisjoint(before.splitlines())
    # it has a work disk, which was made of the image's seed: we are let in
    assert _sh(own, "next", "findmnt -n -o FSTYPE /root; ls /root/.ssh/authorized_keys").split() == [
        "ext4",
        "/root/.ssh/authorized_keys",
    ]
    _sh(own, "next", f"echo {OF_HOME} >/root/mine; sync")
    own.run("vm", "stop", "next")
    own.run("image", "commit", "next", "third", "--with-work-disk")
    assert own.json("image", "show", "third")["parents"] == ["second", "debian"]
    assert own.json("vm", "show", "next")["state"] == "stopped"
    seed = _part(own, "third", "work-seed")
    assert _holds(seed, OF_HOME)
    assert not _holds(_part(own, "third", "root"), OF_HOME)
