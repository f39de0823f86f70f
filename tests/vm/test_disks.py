"""A machine's disks: /root on a disk of its own that outlasts the root, sizes that grow, room that is given back."""

import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.support.home import Home
from tests.vm.test_lifecycle import engines, qemu_of

MIB, GIB = 1 << 20, 1 << 30


def sh(home: Home, name: str, script: str) -> str:
    return home.run("vm", "exec", name, "--", "sh", "-ec", script).stdout.decode()


def filesystem_bytes(home: Home, name: str, path: str) -> int:
    return int(sh(home, name, f"df -B1 --output=size {path} | tail -1"))


def allocated(path: Path) -> int:
    return path.stat().st_blocks * 512


def disk_of(home: Home, name: str, file: str) -> Path:
    return home.state / "vms" / str(home.json("vm", "show", name)["id"]) / file


@pytest.fixture(scope="module")
def worked(home: Home) -> Iterator[str]:
    """A VM with disks of sizes of its own."""
    home.run("vm", "create", "--name", "disks", "--memory", "512M", "--disk", "6G", "--work-disk", "1G")
    yield "disks"
    home.run("vm", "delete", "disks", "--yes")


def test_root_has_a_home_of_its_own(home: Home, worked: str) -> None:
    source, kind, options = sh(home, worked, "findmnt -no SOURCE,FSTYPE,OPTIONS /root").split()
    assert (source, kind) == ("/dev/vdb", "ext4")
    assert "discard" in options.split(",")
    assert sh(home, worked, "stat -c '%U:%G %a' /root /root/.ssh /root/.ssh/authorized_keys") == (
        "root:root 700\nroot:root 700\nroot:root 600\n"
    )
    shell = home.run("vm", "exec", worked, "--", "bash", "-lic", 'echo $PATH; echo "${PS1@P}"; pwd').stdout
    assert b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin" in shell
    assert b"disks" in shell
    assert home.run("vm", "ssh", worked, "--", "pwd").stdout == b"/root\n"
    vm = home.json("vm", "show", worked)
    assert (vm["disk_bytes"], vm["work_disk_bytes"]) == (6 * GIB, GIB)
    assert 0 < vm["work_disk_allocated_bytes"] < 40 * MIB


def test_the_disks_have_the_sizes_that_were_asked_for(home: Home, worked: str) -> None:
    assert filesystem_bytes(home, worked, "/") > 5.5 * GIB
    assert 0.9 * GIB < filesystem_bytes(home, worked, "/root") <= GIB
    assert "smaller" in home.error("vm", "create", "--disk", "1G", status=2)
    assert "smaller" in home.error("vm", "set", worked, "--work-disk", "512M", status=4)
    assert "not possible" in home.error("vm", "create", "--work-disk", "1M", status=2)


def test_a_work_disk_grows_while_its_guest_runs(home: Home, worked: str) -> None:
    sh(home, worked, "echo grown > /root/before")
    home.run("vm", "set", worked, "--work-disk", "3G")
    assert filesystem_bytes(home, worked, "/root") > 2.8 * GIB
    assert sh(home, worked, "cat /root/before") == "grown\n"
    assert home.json("vm", "show", worked)["work_disk_bytes"] == 3 * GIB


def test_room_that_a_guest_frees_is_given_back(home: Home, worked: str) -> None:
    disk = disk_of(home, worked, "work.ext4")
    before = allocated(disk)
    sh(home, worked, "dd if=/dev/zero of=/root/big bs=1M count=1024 2>&1; sync")
    written = allocated(disk)
    assert written - before > 1000 * MIB
    sh(home, worked, "rm /root/big; sync; fstrim /root")
    assert allocated(disk) - before < 100 * MIB
    root = disk_of(home, worked, "root.qcow2")
    sh(home, worked, "dd if=/dev/zero of=/var/big bs=1M count=200 2>&1; sync")
    grown = allocated(root)
    sh(home, worked, "rm /var/big; sync; fstrim /")
    assert grown - allocated(root) > 150 * MIB


def test_what_was_made_in_root_outlasts_another_image_and_a_power_off(home: Home, worked: str) -> None:
    sh(home, worked, "mkdir /root/project; echo mine > /root/project/file; echo gone > /var/marker; sync")
    assert "in use" in home.error("vm", "set", worked, "--image", "debian", "--yes", status=4)
    home.run("vm", "stop", worked)
    assert "nothing was asked" in home.error("vm", "set", worked, status=2)
    home.run("vm", "set", worked, "--work-disk", "9G")
    home.run("vm", "set", worked, "--image", "debian", "--yes")
    home.run("vm", "start", worked)
    assert sh(home, worked, "cat /root/project/file; ls /var/marker 2>&1 || true").startswith("mine\nls:")
    assert filesystem_bytes(home, worked, "/root") > 8.5 * GIB


LOGGER = """
import os
a = os.open("/root/log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
b = os.open("/var/log/log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
n = 0
while True:
    for fd in a, b:
        os.write(fd, b"line %d\\n" % n)
        os.fsync(fd)
    print(n, flush=True)
    n += 1
"""


def test_a_power_cut_loses_nothing_that_was_synced_and_a_volume_nothing_at_all(fresh: Home) -> None:
    fresh.run("vm", "create", "--name", "a", "--memory", "512M")
    logging = fresh.start("vm", "exec", "a", "--", "python3", "-c", LOGGER)
    assert logging.stdout is not None
    told, begun = -1, time.monotonic()
    while told < 200 and time.monotonic() - begun < 60:
        told = int(logging.stdout.readline())
    qemu_of(engines(fresh)[0]).kill()
    rest, _ = logging.communicate(timeout=60)
    told = max([told, *(int(line) for line in rest.split())])
    assert told > 20
    psutil.wait_procs(engines(fresh), 20)

    starting = fresh.json("vm", "start", "a")
    assert starting["state"] == "running"
    for file in ("/root/log", "/var/log/log"):
        lines = sh(fresh, "a", f"cat {file}").splitlines()
        assert lines[: told + 1] == [f"line {n}" for n in range(told + 1)]

    # what the guest has not written yet is kept as well, and the next machine has all of it
    sh(fresh, "a", "echo precious > /root/file")
    fresh.run("vm", "delete", "a", "--keep-work-disk", "--yes")
    assert [volume["name"] for volume in fresh.json("volume", "list")] == ["a"]
    fresh.run("vm", "create", "--name", "b", "--memory", "512M", "--volume", "a")
    assert sh(fresh, "b", "cat /root/file; wc -l </root/log").startswith("precious\n")
    assert fresh.json("volume", "list") == []
    assert "no volume a" in fresh.error("vm", "create", "--volume", "a", status=3)
    fresh.run("vm", "stop", "b")
    assert all(part["ok"] for part in fresh.json("vm", "check", "b"))
