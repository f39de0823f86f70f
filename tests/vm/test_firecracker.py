"""Firecracker's launch path, direct and through the jailer, with stand-ins that record it and a real guest behind them.

What this cannot prove is that Firecracker itself accepts what it is sent: the payloads are validated against its
specification, and tests/vm/test_contract.py runs against the real one where there are a binary and KVM.
"""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.fakes import Fakes, pretend_kvm
from tests.support.home import Home
from tests.vm.conftest import track

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="the jailer, and images' files, are root's")


class Place:
    """A home whose firecracker and jailer are stand-ins."""

    def __init__(self, images: Path, **fakes: object) -> None:
        self.home = track(Home(images=images))
        self.fakes = Fakes(self.home.root / "bin", **fakes)  # type: ignore[arg-type]
        self.home.env["PATH"] = f"{self.fakes.directory}:{os.environ['PATH']}"
        said = subprocess.run(["qemu-system-x86_64", "--version"], capture_output=True, text=True, check=True).stdout
        pretend_kvm(self.home.root / "cache", said.split("version ")[1].split()[0])

    @property
    def jails(self) -> Path:
        return self.home.state / "jails"


@pytest.fixture
def direct(images: Path) -> Iterator[Place]:
    place = Place(images, jailer=False)
    yield place
    place.home.close()


@pytest.fixture
def jailed(images: Path) -> Iterator[Place]:
    place = Place(images)
    yield place
    place.home.close()


def test_a_machine_on_firecracker_started_directly(direct: Place) -> None:
    home = direct.home
    home.run("vm", "create", "--name", "a")
    vm = home.json("vm", "show", "a")
    assert (vm["engine"], vm["engine_version"], vm["accelerator"], vm["jailed"]) == (
        "firecracker",
        "1.15.1",
        "kvm",
        False,
    )
    assert vm["engine_reason"] == "KVM works, and firecracker is installed"
    assert (vm["network"], vm["guest_ip"], vm["health"]) == ("none", "", "healthy")
    (record,) = direct.fakes.records("firecracker")
    run, state = home.runtime / "vms" / vm["id"], home.state / "vms" / vm["id"]
    assert record["argv"] == [
        str(direct.fakes.directory / "firecracker"),
        *("--api-sock", str(run / "api.sock")),
        *("--id", vm["id"]),
        *("--log-path", str(state / "engine.log")),
        *("--level", "Info"),
    ]
    console, log = str(state / "console.log"), str(state / "engine.log")
    given = {fd: path for fd, path in record["fds"].items() if int(fd) <= 2 or not path.startswith("/proc/")}
    # beside these, the image that it keeps locked
    held = [path for fd, path in given.items() if int(fd) > 2]
    assert [Path(path).resolve() for path in held] == [(home.state / "images" / "debian" / "root.ext4").resolve()]
    assert [given[fd] for fd in "012"] == [str(state / "console.in"), console, log]
    assert record["sid"] == record["pid"] == vm["engine_pid"]
    disks = ["root.ext4", "work.ext4"]
    assert sorted(path.name for path in state.iterdir()) == ["console.in", "console.log", "engine.log", *disks]
    home.run("vm", "exec", "a", "--", "sh", "-c", "echo kept > /root/note; sync")
    pauses_and_resumes_without_a_word(home)
    home.run("vm", "stop", "a")
    home.run("vm", "start", "a")
    assert home.run("vm", "exec", "a", "--", "cat", "/root/note").stdout == b"kept\n"
    assert len(direct.fakes.records("firecracker")) == 2


def pauses_and_resumes_without_a_word(home: Home) -> None:
    """As a release that has no fault there does."""
    assert "fault" not in home.run("vm", "pause", "a").stderr.decode()
    assert home.json("vm", "show", "a")["state"] == "paused"
    home.run("vm", "resume", "a")
    home.run("vm", "exec", "a", "--", "true")


def test_what_firecracker_cannot_do_is_said(direct: Place) -> None:
    said = direct.home.error("vm", "create", "--engine", "firecracker", "--nat", "--name", "a", status=2)
    assert "no network without privilege" in said
    assert "--engine qemu" in said
    assert direct.home.json("vm", "list") == []


def test_a_machine_in_a_jail_outlives_its_daemon_and_leaves_nothing(jailed: Place) -> None:
    home = jailed.home
    home.run("vm", "create", "--name", "a", "--memory", "768M")
    vm = home.json("vm", "show", "a")
    assert vm["jailed"]
    assert "in a jail" in home.run("vm", "show", "a").stdout.decode()
    is_confined(jailed, vm)
    home.kill_daemon()
    after = home.json("vm", "show", "a")
    assert (after["state"], after["engine_pid"]) == ("running", vm["engine_pid"])
    home.run("vm", "exec", "a", "--", "sh", "-c", "echo kept > /root/note; sync")
    home.run("vm", "stop", "a")
    assert not list(jailed.jails.glob("firecracker/*"))
    home.run("vm", "start", "a")
    assert home.run("vm", "exec", "a", "--", "cat", "/root/note").stdout == b"kept\n"
    home.run("vm", "delete", "a", "--yes")
    assert not list(jailed.jails.glob("firecracker/*"))
    assert str(jailed.jails) not in Path("/proc/self/mountinfo").read_text()
    assert not Path(f"/sys/fs/cgroup/banger/{vm['id']}").exists()


def is_confined(jailed: Place, vm: dict[str, Any]) -> None:
    """What the jailer was told, which files it was given, and what the engine is inside."""
    (record,) = jailed.fakes.records("jailer")
    options = dict(record["options"])
    root = jailed.jails / "firecracker" / vm["id"] / "root"
    assert (record["root"], options["--id"], options["--new-pid-ns"]) == (str(root), vm["id"], None)
    uid = int(options["--uid"])
    assert uid == int(options["--gid"]) > 1_000_000
    assert ["--resource-limit", "no-file=8192"] in record["options"]
    assert record["rest"] == ["--api-sock", "/run/api.sock", "--log-path", "/run/engine.log", "--level", "Info"]
    files = record["files"]
    assert set(files) == {".", "run", "disks", "kernel", "initramfs", "disks/root", "disks/work", "run/engine.log"}
    theirs = {name for name, (_, owner, _) in files.items() if owner == uid}
    assert theirs == {"run", "disks/root", "disks/work", "run/engine.log"}
    assert files["run"][0] == "0o40700"
    engine = psutil.Process(vm["engine_pid"])
    assert set(engine.uids()) == {uid}
    assert Path(f"/proc/{engine.pid}/root").samefile(root)
    status = Path(f"/proc/{engine.pid}/status").read_text()
    assert status.split("NSpid:")[1].split("\n")[0].split()[1:] == ["1"]
    told = jailed.home.run("vm", "exec", "a", "--", "cat", "/proc/sys/kernel/hostname").stdout
    assert told == b"a\n"


def test_a_jailer_that_fails_is_told_with_its_words_and_leaves_nothing(jailed: Place) -> None:
    script = "#!/bin/sh\necho 'Jailer: the moon is in the wrong phase' >&2\nexit 1\n"
    (jailed.fakes.directory / "jailer").write_text(script)
    said = jailed.home.error("vm", "create", "--name", "a", status=1)
    assert "the moon is in the wrong phase" in said
    assert jailed.home.json("vm", "list") == []
    assert not list(jailed.jails.glob("firecracker/*"))
    assert not list(jailed.home.state.glob("vms/*"))


def test_the_hang_after_a_pause_is_recognized(images: Path) -> None:
    place = Place(images, version="1.16.0", jailer=False)
    try:
        place.home.run("vm", "create", "--name", "a")
        noted = place.home.run("vm", "pause", "a").stderr.decode()
        assert "firecracker 1.16.0 has a fault" in noted
        said = place.home.error("vm", "resume", "a", status=6)
        assert "can hang for ever" in said
        assert "restart --force" in said
        assert place.home.json("vm", "show", "a")["state"] == "running"
        place.home.run("vm", "restart", "--force", "a")
        place.home.run("vm", "exec", "a", "--", "true")
    finally:
        place.home.close()
