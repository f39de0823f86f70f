"""Stop, start, kill: machines outlive daemons, failures leave nothing, what is stored is what is."""

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.support.home import Home
from tests.unit.images.test_locks import locked
from tests.vm.conftest import track


def guest_boot_id(home: Home, name: str) -> str:
    return home.run("vm", "exec", name, "--", "cat", "/proc/sys/kernel/random/boot_id").stdout.decode().strip()


def wait_for_state(home: Home, name: str, state: str) -> None:
    for _ in range(100):
        if home.json("vm", "show", name)["state"] == state:
            return
        time.sleep(0.1)
    assert home.json("vm", "show", name)["state"] == state


def engines(home: Home) -> list[psutil.Process]:
    return [p for p in home.processes() if "--api-sock" in p.cmdline()]


def qemu_of(engine: psutil.Process) -> psutil.Process:
    return next(child for child in engine.children() if "qemu-system" in child.name())


def nothing_left(home: Home) -> None:
    assert home.json("vm", "list") == []
    assert not engines(home)
    assert not list((home.state / "vms").glob("*"))
    assert not list((home.runtime / "vms").glob("*"))


@pytest.fixture
def alone(images: Path, tmp_path: Path) -> Iterator[Home]:
    """A banger with an image that no other machine uses."""
    shutil.copytree(images.resolve().parent / "ssh", tmp_path / "ssh")
    (tmp_path / "images").mkdir()
    copy = ["cp", "--archive", "--sparse=always", "--reflink=auto", str(images / "debian"), str(tmp_path / "images")]
    subprocess.run(copy, check=True)
    made = track(Home(images=tmp_path / "images"))
    yield made
    made.close()
    shutil.rmtree(tmp_path / "images")


def test_stop_start_and_restart_keep_the_disk_and_lock_the_image_while_it_runs(alone: Home) -> None:
    root = alone.state / "images" / "debian" / "root.ext4"
    assert root.stat().st_mode & 0o222 == 0
    assert not locked(root)
    alone.run("vm", "create", "--name", "a", "--memory", "512M")
    stays_locked_whoever_is_killed(alone, root)
    alone.run("vm", "exec", "a", "--", "sh", "-c", "echo kept | tee /var/lib/marker >/root/marker; sync")
    assert "running already" in alone.error("vm", "start", "a", status=4)

    alone.run("vm", "stop", "a")
    assert not locked(root)
    is_stopped(alone)

    alone.run("vm", "start", "a")
    assert locked(root)
    first = guest_boot_id(alone, "a")
    alone.run("vm", "restart", "a", "--force")
    assert locked(root)
    assert guest_boot_id(alone, "a") != first
    assert alone.run("vm", "exec", "a", "cat", "/var/lib/marker", "/root/marker").stdout == b"kept\nkept\n"

    assert "--yes" in alone.error("vm", "delete", "a", status=2)
    alone.run("vm", "delete", "a", "--yes")
    assert not locked(root)
    nothing_left(alone)


def stays_locked_whoever_is_killed(home: Home, root: Path) -> None:
    assert locked(root)
    command = ["flock", "--nonblock", "--exclusive", str(root), "true"]
    assert subprocess.run(command, check=False).returncode == 1
    home.kill_daemon()
    assert locked(root)
    engine = psutil.Process(int(home.json("vm", "show", "a")["engine_pid"]))
    holders = [process for process in (engine, *engine.children(recursive=True)) if has_open(process, root.resolve())]
    assert engine in holders


def has_open(process: psutil.Process, path: Path) -> bool:
    return any(link.resolve() == path for link in Path(f"/proc/{process.pid}/fd").iterdir() if link.exists())


def is_stopped(home: Home) -> None:
    stopped = home.json("vm", "show", "a")
    assert (stopped["state"], stopped["uptime_s"], stopped["engine_pid"]) == ("stopped", None, None)
    assert not engines(home)
    assert "vm start a" in home.error("vm", "exec", "a", "--", "true", status=4)
    assert "not running" in home.error("vm", "stop", "a", status=4)
    assert home.run("vm", "health", "a", status=4).stdout


def test_a_machine_outlives_its_daemon_stopped_or_killed(fresh: Home) -> None:
    fresh.run("vm", "create", "--name", "a", "--memory", "512M", "--no-work-disk")
    assert fresh.run("vm", "exec", "a", "--", "findmnt", "-no", "TARGET", "-T", "/root").stdout == b"/\n"
    guest, before = guest_boot_id(fresh, "a"), fresh.json("vm", "show", "a")
    fresh.run("daemon", "stop")
    assert psutil.pid_exists(before["engine_pid"])
    after = fresh.json("vm", "show", "a")
    assert (after["state"], after["engine_pid"]) == ("running", before["engine_pid"])
    assert after["uptime_s"] > before["uptime_s"]
    fresh.kill_daemon()
    assert guest_boot_id(fresh, "a") == guest
    assert fresh.json("vm", "show", "a")["work_disk_bytes"] == 0
    assert "no work disk" in fresh.error("vm", "set", "a", "--work-disk", "9G", status=4)
    fresh.run("vm", "stop", "a")
    assert fresh.json("vm", "show", "a")["state"] == "stopped"


def test_engine_and_qemu_die_together_and_the_daemon_notices(fresh: Home) -> None:
    fresh.run("vm", "create", "--name", "a", "--memory", "512M")
    engine = engines(fresh)[0]
    qemu = qemu_of(engine)
    engine.kill()
    qemu.wait(10)
    wait_for_state(fresh, "a", "failed")
    assert "ended by itself" in fresh.json("vm", "show", "a")["problem"]

    fresh.run("vm", "start", "a")
    engine = engines(fresh)[0]
    qemu_of(engine).kill()
    psutil.wait_procs([engine], 10)
    wait_for_state(fresh, "a", "failed")

    fresh.run("vm", "start", "a")
    # a session under which the machine is powered off ends with a line that says so
    done = fresh.run("vm", "ssh", "a", "systemctl poweroff; sleep 60", status=255)
    last = done.stderr.decode().splitlines()[-1]
    assert last.startswith("banger: a is stopped: engine: ")
    assert last.endswith("; try: banger vm start a")
    wait_for_state(fresh, "a", "stopped")
    assert "powered off" in fresh.json("vm", "show", "a")["problem"]


def test_a_machine_that_ends_while_no_daemon_watches_is_stopped_afterwards(fresh: Home) -> None:
    fresh.run("vm", "create", "--name", "a", "--memory", "512M")
    engine = engines(fresh)[0]
    fresh.run("daemon", "stop")
    engine.kill()
    psutil.wait_procs([engine], 10)
    vm = fresh.json("vm", "show", "a")
    assert (vm["state"], vm["engine_pid"]) == ("stopped", None)
    assert "no daemon" in vm["problem"]


def test_ctrl_c_during_create_takes_everything_back(fresh: Home) -> None:
    creating = fresh.start("vm", "create", "--name", "a")
    assert creating.stderr is not None
    while b"start " not in creating.stderr.readline():
        pass
    creating.send_signal(signal.SIGINT)
    _, err = creating.communicate(timeout=60)
    assert creating.returncode == 1
    assert b"cancelled" in err
    assert b"Traceback" not in err
    nothing_left(fresh)
    fresh.run("vm", "create", "--name", "a", "--detach")
    assert "busy" in fresh.error("vm", "delete", "a", "--yes", status=4)
    running = fresh.json("operation", "list")[0]
    assert fresh.json("operation", "cancel", running["id"])["state"] == "cancelled"
    nothing_left(fresh)


def test_a_daemon_killed_during_create_leaves_nothing_after_the_next_start(fresh: Home) -> None:
    creating = fresh.start("vm", "create", "--name", "a")
    assert creating.stderr is not None
    while b"start " not in creating.stderr.readline():
        pass
    fresh.kill_daemon()
    _, err = creating.communicate(timeout=60)
    assert creating.returncode != 0
    assert b"ended during this operation" in err, err
    nothing_left(fresh)
    assert fresh.json("operation", "list")[0]["state"] == "interrupted"


def test_a_boot_that_takes_too_long_shows_the_console_and_leaves_nothing(fresh: Home) -> None:
    (fresh.root / "config.toml").write_text("boot_timeout_s = 2.5\n")
    text = fresh.error("vm", "create", "--name", "a", status=6)
    assert "did not become healthy" in text
    assert "boot_timeout_s" in text
    nothing_left(fresh)


def test_a_kernel_that_panics_is_booted_again_and_then_told(fresh: Home, images: Path) -> None:
    """Emulation makes a booting kernel panic now and then; one that always does must still end in an error."""
    fresh.run("daemon", "stop", status=None)
    (fresh.state / "images").unlink()
    broken = fresh.state / "images" / "panics"
    broken.mkdir(parents=True)
    for part in (images / "debian").iterdir():
        if part.name != "image.json":
            os.link(part, broken / part.name)
    described = json.loads((images / "debian" / "image.json").read_text())
    # without an init in the initramfs, and without modules to find the root, the kernel gives up
    described |= {"name": "panics", "boot_args": "console=ttyS0 panic=-1 rdinit=/none root=/dev/none"}
    (broken / "image.json").write_text(json.dumps(described))
    text = fresh.error("vm", "create", "--name", "a", "--image", "panics", "--memory", "512M", status=6)
    assert text.count("booting it again") == 2
    assert "console | " in text
    assert "Kernel panic" in text
    nothing_left(fresh)


def test_a_recycled_pid_is_not_taken_for_a_machine(fresh: Home) -> None:
    """The stored pid belongs to another process now: it is neither adopted nor killed."""
    fresh.run("vm", "create", "--name", "a", "--memory", "512M")
    engine = engines(fresh)[0]
    fresh.run("daemon", "stop")
    engine.kill()
    psutil.wait_procs([engine], 10)
    stranger = _stranger_with_pid(engine.pid)
    if stranger is None:
        pytest.skip("the kernel did not give the wanted pid to another process")
    try:
        assert fresh.json("vm", "show", "a")["state"] == "stopped"
        assert stranger.is_running()
    finally:
        stranger.kill()
        os.waitpid(stranger.pid, 0)


def _stranger_with_pid(pid: int) -> psutil.Process | None:
    last = Path("/proc/sys/kernel/ns_last_pid")
    for _ in range(20):
        try:
            last.write_text(str(pid - 1))
        except OSError:
            return None
        child = os.fork()
        if child == 0:
            signal.pause()
            os._exit(0)
        if child == pid:
            return psutil.Process(pid)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    return None
