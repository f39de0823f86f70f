"""One healthy machine, looked at from every side."""

import hashlib
import os
import signal
import time
from pathlib import Path

from tests.support.home import Home

FIELDS = {
    *("id", "name", "state", "image", "vcpu", "memory_mib", "disk_bytes", "work_disk_bytes", "engine", "accelerator"),
    *("network", "guest_ip", "nat", "created_at", "uptime_s", "health"),
}


def test_the_document_says_what_was_made(home: Home, booted: str) -> None:
    vm = home.json("vm", "show", booted)
    assert set(vm) >= FIELDS
    assert (vm["name"], vm["state"], vm["health"], vm["image"]) == (booted, "running", "healthy", "debian")
    assert (vm["vcpu"], vm["memory_mib"], vm["nat"], vm["network"]) == (2, 1024, False, "user")
    assert vm["uptime_s"] > 0
    moving = {"uptime_s": 0, "disk_allocated_bytes": 0}
    assert home.json("vm", "show", vm["id"]) | moving == vm | moving
    assert home.json("vm", "show", vm["id"][:5])["id"] == vm["id"]
    assert [listed["id"] for listed in home.json("vm", "list")] == [vm["id"]]


def test_the_accelerator_is_the_one_that_was_proven_and_says_why(home: Home, booted: str) -> None:
    vm = home.json("vm", "show", booted)
    assert vm["accelerator"] in ("kvm", "tcg")
    assert vm["accelerator_reason"]
    shown = home.run("vm", "show", booted).stdout.decode()
    assert f"{vm['accelerator']} ({vm['accelerator_reason']})" in shown


def test_a_machine_takes_little_of_the_disk(home: Home, booted: str) -> None:
    assert (
        home.json("vm", "show", booted)["disk_allocated_bytes"] < 40 << 20
    )  # it has been used; test_guest has a new one


def test_the_machine_has_its_own_kernel_and_the_size_that_was_asked(home: Home, booted: str) -> None:
    kernel, cpus, kib, name = (
        home.run(
            "vm",
            "exec",
            booted,
            "--",
            "sh",
            "-c",
            "uname -r; nproc; awk '/MemTotal/{print $2}' /proc/meminfo; hostname",
        )
        .stdout.decode()
        .split()
    )
    assert kernel == home.json("image", "show", "debian")["kernel_release"] != os.uname().release
    assert (cpus, name) == ("2", booted)
    assert 900_000 < int(kib) < 1_100_000


def test_health_names_each_check(home: Home, booted: str) -> None:
    health = home.json("vm", "health", booted)
    assert health["status"] == "healthy"
    assert {"engine", "engine-api", "agent", "service ssh"} <= {check["name"] for check in health["checks"]}


def test_the_console_log_shows_the_guest(home: Home, booted: str) -> None:
    home.run("vm", "exec", booted, "--", "sh", "-c", "echo marker-7 > /dev/console")
    for _ in range(50):
        if "marker-7" in home.run("vm", "logs", booted).stdout.decode():
            break
        time.sleep(0.1)
    assert "marker-7" in home.run("vm", "logs", booted).stdout.decode()
    assert home.json("vm", "logs", booted, "--source", "engine")["lines"]
    assert home.run("vm", "logs", booted, "-n", "0").stdout.strip() == b""


def test_the_create_operation_kept_its_stages(home: Home, booted: str) -> None:
    created = next(op for op in home.json("operation", "list") if op["kind"] == "vm.create")
    shown = home.json("operation", "show", created["id"])
    assert shown["state"] == "done"
    assert [stage["name"] for stage in shown["stages"]][-1] == "boot to healthy"
    assert all(stage["ok"] and stage["seconds"] >= 0 for stage in shown["stages"])
    assert home.json("operation", "wait", created["id"])["id"] == created["id"]
    assert "ended already" in home.error("operation", "cancel", created["id"], status=4)


def test_exec_keeps_outputs_apart_and_gives_the_status(home: Home, booted: str) -> None:
    done = home.run("vm", "exec", booted, "--", "sh", "-c", "echo out; echo err >&2; exit 7", status=7)
    assert (done.stdout, done.stderr) == (b"out\n", b"err\n")
    home.run("vm", "exec", booted, "true")
    home.run("vm", "exec", booted, "--", "sh", "-c", "kill -TERM $$", status=128 + signal.SIGTERM)
    assert b"no-such-program" in home.run("vm", "exec", booted, "--", "no-such-program", status=127).stderr


def test_exec_takes_stdin_environment_directory_user_and_a_time_limit(home: Home, booted: str) -> None:
    assert home.run("vm", "exec", booted, "-i", "--", "cat", input=b"a\0b\xff").stdout == b"a\0b\xff"
    asked = (
        "vm",
        "exec",
        booted,
        "-e",
        "A=b c",
        "-w",
        "/tmp",
        "-u",
        "nobody",
        "--",
        "sh",
        "-c",
        "echo $A; pwd; id -un",
    )
    assert home.run(*asked).stdout == b"b c\n/tmp\nnobody\n"
    assert b"1 s" in home.run("vm", "exec", booted, "--timeout", "1", "--", "sleep", "60", status=124).stderr
    assert "NAME=VALUE" in home.error("vm", "exec", booted, "-e", "A", "--", "true", status=2)


def test_a_hundred_megabytes_arrive_byte_for_byte(home: Home, booted: str) -> None:
    size = 100 << 20
    script = (
        "import hashlib,sys\nh=hashlib.sha256()\nb=bytes(range(256))*256\n"
        f"for i in range({size}//len(b)):\n c=i.to_bytes(4,'big')+b[4:]\n h.update(c); sys.stdout.buffer.write(c)\n"
        "sys.stderr.write(h.hexdigest())"
    )
    done = home.run("vm", "exec", booted, "--", "python3", "-c", script)
    assert len(done.stdout) == size
    assert hashlib.sha256(done.stdout).hexdigest() == done.stderr.decode()


def test_an_engine_stays_small_after_large_transfers(home: Home, booted: str) -> None:
    """25 MiB of its own, without QEMU: guest pages that passed through it are given back."""
    home.run("vm", "exec", booted, "--", "head", "-c", str(64 << 20), "/dev/zero")
    rollup = Path(f"/proc/{home.json('vm', 'show', booted)['engine_pid']}/smaps_rollup").read_text()
    assert int(rollup.split("Pss:")[1].split()[0]) < 25 << 10


def test_megabytes_of_stdin_arrive_byte_for_byte(home: Home, booted: str) -> None:
    data = os.urandom(8 << 20)
    done = home.run("vm", "exec", booted, "-i", "--", "sha256sum", input=data)
    assert done.stdout.split()[0].decode() == hashlib.sha256(data).hexdigest()


def test_ctrl_c_ends_the_command_in_the_guest(home: Home, booted: str) -> None:
    child = home.start("vm", "exec", booted, "--", "sh", "-c", "echo begun; exec sleep 4711")
    assert child.stdout is not None
    assert child.stdout.readline() == b"begun\n"
    child.send_signal(signal.SIGINT)
    child.communicate(timeout=30)
    assert child.returncode == 128 + signal.SIGINT
    home.run("vm", "exec", booted, "--", "sh", "-c", "! pgrep -f 'sleep 471[1]'")


def test_a_client_killed_takes_its_command_along(home: Home, booted: str) -> None:
    child = home.start("vm", "exec", booted, "--", "sh", "-c", "echo begun; exec sleep 4712")
    assert child.stdout is not None
    assert child.stdout.readline() == b"begun\n"
    child.kill()
    child.communicate(timeout=30)
    for _ in range(100):
        if home.run("vm", "exec", booted, "--", "pgrep", "-f", "sleep 471[2]", status=None).returncode == 1:
            break
        time.sleep(0.1)
    home.run("vm", "exec", booted, "--", "sh", "-c", "! pgrep -f 'sleep 471[2]'")


def test_many_small_commands_leave_nothing_open(home: Home, booted: str) -> None:
    """Descriptors of engine and daemon are the same before and after."""
    engine, daemon = home.json("vm", "show", booted)["engine_pid"], home.daemon_pid()

    def descriptors() -> tuple[int, int]:
        time.sleep(0.5)
        return len(list(Path(f"/proc/{engine}/fd").iterdir())), len(list(Path(f"/proc/{daemon}/fd").iterdir()))

    home.run("vm", "exec", booted, "true")
    before = descriptors()
    children = []
    for _ in range(20):
        children = [home.start("vm", "exec", booted, "true") for _ in range(4)]
        assert [child.wait(60) for child in children] == [0] * 4
        for child in children:
            child.communicate()
    after = descriptors()
    assert after[0] <= before[0] + 2
    assert after[1] <= before[1] + 2


def test_the_guest_reaches_nothing_without_nat(home: Home, booted: str) -> None:
    """Not even the services of this host, here on its loopback by way of the gateway's address."""
    script = "timeout 3 bash -c 'exec 3<>/dev/tcp/10.0.2.2/22 || exec 3<>/dev/tcp/10.0.2.2/1' 2>&1"
    assert home.run("vm", "exec", booted, "--", "sh", "-c", script, status=None).returncode != 0
