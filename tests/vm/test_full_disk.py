"""A host disk that fills up pauses its machines with a clear state, and nothing that a guest wrote is lost."""

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import leaks
from tests.support.fakes import Fakes, pretend_kvm
from tests.support.home import Home
from tests.vm.conftest import track
from tests.vm.test_lifecycle import engines, wait_for_state

MIB = 1 << 20
SIZE = 2048 * MIB
LEFT = 24 * MIB
PAUSED = "paused: no space left on the host's disk"
# the checks are too seldom to be what notices
SETTINGS = "health_period_s = 600\ndisk_reserve_mib = {reserve}\n"
# writes twice what is left, and prints at the end only
WRITER = """
import hashlib, os
sums = []
for number in range(48):
    data = os.urandom(1 << 20)
    with open(f"/root/{NAME}{number}", "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    sums.append(f"{hashlib.sha256(data).hexdigest()}  /root/{NAME}{number}")
with open("/root/sums", "w") as file:
    print(*sums, sep="\\n", file=file)
"""
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounts are root's")


class Small:
    """A home whose state directory lies on a small filesystem of its own."""

    def __init__(self, home: Home, mount: Path) -> None:
        self.home = home
        self.mount = mount
        self.filler = mount / "filler"

    def settle(self, reserve: int) -> None:
        """Another reserve in MiB, with a daemon that starts anew."""
        self.home.run("daemon", "stop", status=None)
        (self.home.root / "config.toml").write_text(SETTINGS.format(reserve=reserve))

    @property
    def free(self) -> int:
        seen = os.statvfs(self.mount)
        return seen.f_bavail * seen.f_frsize

    def fill(self, leave: int = LEFT) -> None:
        """Leave less than a guest is about to write."""
        with self.filler.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, self.free - leave)

    def write(self, name: str) -> None:
        """Let a guest begin to write, in a session of its own."""
        script = WRITER.replace("{NAME}", name)
        self.home.run("vm", "exec", "-i", "a", "--", "sh", "-c", "cat > /run/writer.py", input=script.encode())
        begin = "rm -f /root/sums; setsid python3 /run/writer.py >/run/said 2>&1 </dev/null &"
        self.home.run("vm", "exec", "a", "--", "sh", "-c", begin)

    def finish(self) -> None:
        """Wait until the guest has written everything, and compare."""
        done = "i=0; while ! [ -e /root/sums ] && [ $i -lt 300 ]; do sleep 0.2; i=$((i+1)); done; cat /run/said"
        assert self.home.run("vm", "exec", "a", "--", "sh", "-c", done).stdout == b""
        self.compare()

    def compare(self) -> None:
        """What is on the disk, not in the guest's memory, is what was written."""
        script = "sync && echo 3 >/proc/sys/vm/drop_caches && sha256sum --check --quiet /root/sums && wc -l </root/sums"
        assert self.home.run("vm", "exec", "a", "--", "sh", "-c", script).stdout == b"48\n"

    def pauses(self) -> int:
        """How often the engine has logged that the disk is full."""
        (log,) = self.mount.glob("vms/*/engine.log")
        return log.read_text().count(PAUSED)


@pytest.fixture
def small(images: Path) -> Iterator[Small]:
    folder = Path(tempfile.mkdtemp(prefix=leaks.prefix()))
    image, mount = folder / "disk", folder / "state"
    mount.mkdir()
    with image.open("wb") as file:
        file.truncate(SIZE)
    subprocess.run(["mke2fs", "-q", "-t", "ext4", "-m", "0", str(image)], check=True)
    subprocess.run(["mount", "-o", "loop", str(image), str(mount)], check=True)
    try:
        mount.chmod(0o700)
        (mount / "images").symlink_to(images)
        shutil.copytree(images.resolve().parent / "ssh", mount / "ssh")
        home = track(Home(settings=SETTINGS.format(reserve=64)))
        home.state.symlink_to(mount)
        try:
            yield Small(home, mount)
        finally:
            (mount / "filler").unlink(missing_ok=True)
            home.close()
    finally:
        subprocess.run(["umount", str(mount)], check=True)
        shutil.rmtree(folder)


def test_a_full_disk_pauses_and_the_guest_finishes_its_write_later(small: Small) -> None:
    small.home.run("vm", "create", "--name", "a", "--memory", "512M")
    pauses_and_is_resumed(small)
    fills_while_no_daemon_runs(small)


def pauses_and_is_resumed(small: Small) -> None:
    home = small.home
    small.fill()
    small.write("first")
    wait_for_state(home, "a", "paused")
    check_that_it_is_told(small)

    # the disk is full: nothing claims to have resumed it
    assert "must stay free" in home.error("vm", "resume", "a", status=5)
    small.settle(reserve=0)
    assert home.json("vm", "show", "a")["state"] == "paused"
    assert "paused again at once" in home.error("vm", "resume", "a", status=5)
    assert "vm stop --force a" in home.error("vm", "stop", "a", status=5)
    check_that_it_is_told(small)

    small.filler.unlink()
    home.run("vm", "resume", "a")
    assert (home.json("vm", "show", "a")["state"], home.json("vm", "show", "a")["problem"]) == ("running", "")
    small.finish()
    home.run("vm", "health", "a")
    home.run("vm", "restart", "a")
    small.compare()


def check_that_it_is_told(small: Small) -> None:
    home = small.home
    problem = home.json("vm", "show", "a")["problem"]
    assert problem.startswith("the host's disk is full: ")
    assert problem.endswith(f" free at {home.state}")
    assert "the host's disk is full: " in home.run("vm", "show", "a").stdout.decode()
    assert "a is paused: the host's disk is full: " in home.run("vm", "list").stdout.decode()
    assert "the host's disk is full: " in home.error("vm", "exec", "a", "--", "true", status=4)
    health = home.run("vm", "health", "a", status=6).stdout.decode()
    assert "engine-api: the VM is paused: the host's disk is full: " in health
    assert "vm resume a" in health
    assert "the host's disk is full: " in home.run("vm", "report", "a").stderr.decode()


def fills_while_no_daemon_runs(small: Small) -> None:
    """The next one tells it."""
    home, before = small.home, small.pauses()
    small.settle(reserve=64)
    small.write("late")
    home.run("daemon", "stop")
    small.fill()
    deadline = time.monotonic() + 120
    while small.pauses() == before:
        assert time.monotonic() < deadline, "the guest wrote everything"
        time.sleep(0.1)
    wait_for_state(home, "a", "paused")
    assert "the host's disk is full: " in home.json("vm", "show", "a")["problem"]
    home.kill_daemon()
    small.filler.unlink()
    assert home.json("vm", "show", "a")["state"] == "paused", "a daemon resumes nothing by itself"
    home.run("vm", "resume", "a")
    small.finish()
    assert len(engines(home)) == 1


def test_an_engine_that_would_run_into_it_is_paused_before(small: Small) -> None:
    home = small.home
    fakes = Fakes(home.root / "bin", jailer=False)
    home.env["PATH"] = f"{fakes.directory}:{os.environ['PATH']}"
    said = subprocess.run(["qemu-system-x86_64", "--version"], capture_output=True, text=True, check=True).stdout
    pretend_kvm(home.root / "cache", said.split("version ")[1].split()[0])
    home.run("vm", "create", "--name", "a", "--memory", "512M", "--engine", "firecracker")
    small.fill(leave=200 * MIB)
    wait_for_state(home, "a", "paused")
    assert "the host's disk is full: " in home.json("vm", "show", "a")["problem"]
    assert home.json("operation", "list")[0]["kind"] == "vm.pause"
    assert "256 MiB must stay free" in home.error("vm", "resume", "a", status=5)
    small.filler.unlink()
    home.run("vm", "resume", "a")
    home.run("vm", "exec", "a", "--", "sh", "-c", "dd if=/dev/urandom of=/root/x bs=1M count=8 && sync")
    assert home.json("vm", "show", "a")["state"] == "running"
