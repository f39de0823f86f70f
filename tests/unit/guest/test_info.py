"""GET /info and GET /services, with a false root for each init."""

import asyncio
import os
import platform
from pathlib import Path

import pytest

from banger.guest.agent.info import machine_id, os_release
from banger.guest.agent.services import report
from banger.model.guest import Info
from tests.unit.guest.hybrid import guest
from tests.unit.guest.roots import false_root, write, write_init


def info(folder: Path, *options: str) -> Info:
    async def body() -> Info:
        async with asyncio.timeout(20), guest(folder, *options) as machine:
            return await machine.info()

    return asyncio.run(body())


def test_info_says_what_the_kernel_says(tmp_path: Path) -> None:
    found = info(tmp_path)
    memory = Path("/proc/meminfo").read_text().split()
    assert found.python == platform.python_version()
    assert (found.hostname, found.kernel) == (os.uname().nodename, os.uname().release)
    assert found.cpus == os.cpu_count()
    assert found.memory_bytes == int(memory[memory.index("MemTotal:") + 1]) * 1024
    assert 0 < found.memory_available_bytes <= found.memory_bytes
    assert not {address.address for address in found.addresses} & {"127.0.0.1", "::1"}


def test_info_reads_what_the_image_holds(tmp_path: Path) -> None:
    root = false_root(tmp_path / "root")
    write(root, "etc/os-release", 'ID=alpine\nNAME="Alpine Linux"\nVERSION_ID=3.24.2\nHOME_URL="https://x"\n')
    write(root, "etc/machine-id", "0123456789abcdef0123456789abcdef\n")
    found = info(tmp_path, "--root", str(root))
    assert (found.os.id, found.os.name, found.os.version) == ("alpine", "Alpine Linux", "3.24.2")
    assert found.machine_id == "0123456789abcdef0123456789abcdef"
    assert found.ssh_host_keys == ("ssh-ed25519 AAAAold",)  # without the comment


def test_an_image_without_release_or_machine_id_is_no_error(tmp_path: Path) -> None:
    assert os_release(str(tmp_path)) == {"id": "linux", "name": "", "version": ""}
    write(tmp_path, "etc/machine-id", "uninitialized\n")
    assert machine_id(str(tmp_path)) == ""


@pytest.mark.parametrize("init", ["systemd", "openrc", "runit", "other"])
def test_services_of_each_init(tmp_path: Path, init: str) -> None:
    write_init(tmp_path, init)
    services = [] if init == "other" else [{"name": "sshd", "state": "running"}]
    assert report(str(tmp_path)) == {"init": init, "services": services}


def test_systemd_services_that_shall_run_and_those_that_do(tmp_path: Path) -> None:
    write_init(tmp_path, "systemd")
    wants = "etc/systemd/system/multi-user.target.wants"
    for name in ("opencode", "once", "masked", "gone", "getty@tty1", "getty@tty2"):
        write(tmp_path, f"{wants}/{name}.service", "")
    write(tmp_path, f"{wants}/x.timer", "")
    write(tmp_path, "usr/lib/systemd/system/opencode.service", "[Service]\nType=simple\n")
    write(tmp_path, "etc/systemd/system/once.service", "[Service]\nType=oneshot\n")
    (tmp_path / "etc/systemd/system/masked.service").symlink_to("/dev/null")
    write(tmp_path, "usr/lib/systemd/system/getty@.service", "[Service]\nType=idle\n")
    (tmp_path / "etc/systemd/system/getty@tty1.service").symlink_to("/dev/null")
    write(tmp_path, "sys/fs/cgroup/system.slice/cron.service/cgroup.procs", "7\n")
    write(tmp_path, "sys/fs/cgroup/system.slice/ended.service/cgroup.procs", "")
    states = {item["name"]: item["state"] for item in report(str(tmp_path))["services"]}  # type: ignore[attr-defined]
    assert states == {"cron": "running", "getty@tty2": "stopped", "opencode": "stopped", "sshd": "running"}


def test_openrc_and_runit_tell_stopped_and_failed(tmp_path: Path) -> None:
    openrc, runit = tmp_path / "openrc", tmp_path / "runit"
    write_init(openrc, "openrc")
    write(openrc, "etc/runlevels/default/opencode", "")
    write(openrc, "run/openrc/failed/broken", "")
    write_init(runit, "runit")
    write(runit, "var/service/opencode/supervise/stat", "down\n")
    found = [report(str(root))["services"] for root in (openrc, runit)]
    assert found[0] == [
        {"name": "broken", "state": "failed"},
        {"name": "opencode", "state": "stopped"},
        {"name": "sshd", "state": "running"},
    ]
    assert found[1] == [{"name": "opencode", "state": "stopped"}, {"name": "sshd", "state": "running"}]


def test_services_are_bounded(tmp_path: Path) -> None:
    write_init(tmp_path, "openrc")
    for number in range(400):
        write(tmp_path, f"etc/runlevels/default/s{number}", "")
    assert len(report(str(tmp_path))["services"]) == 256  # type: ignore[arg-type]
