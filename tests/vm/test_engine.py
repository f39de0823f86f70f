"""banger-vmm with a real guest behind it: what the API promises, seen from inside the machine and from the host."""

import json
import os
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.support.engine import Engine

MIB = 1 << 20
START = ("PUT", "/actions", {"action_type": "InstanceStart"})
MARK = b"another disk"


@pytest.fixture(scope="module")
def engine(images: Path) -> Iterator[Engine]:
    """One running machine with every device that the API has."""
    made = Engine(images)
    try:
        made.disk("data.raw", 64)
        drives = [
            *made.configuration()["drives"],
            {"drive_id": "data", "path_on_host": str(made.directory / "data.raw"), "is_root_device": False},
            {
                "drive_id": "async",
                "path_on_host": str(made.disk("async.raw", 32, MARK)),
                "is_root_device": False,
                "is_read_only": True,
                "io_engine": "Async",
                "cache_type": "Writeback",
            },
        ]
        balloon = {"amount_mib": 0, "deflate_on_oom": False, "stats_polling_interval_s": 1}
        made.boot(
            "--boot-timer",
            drives=drives,
            balloon=balloon,
            metrics={"metrics_path": str(made.directory / "metrics")},
            entropy={"rate_limiter": {"bandwidth": {"size": 65536, "refill_time": 100}}},
            serial={"serial_out_path": str(made.directory / "serial.log")},
            **{"network-interfaces/eth0": {"iface_id": "eth0", "host_dev_name": "user:closed", "mtu": 1400}},
        )
        yield made
    finally:
        made.close()


def test_qemu_owns_nothing_and_has_only_the_files_it_was_given(engine: Engine) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root has privileges to give up")
    qemu = engine.qemu()
    status = dict(line.split(":\t", 1) for line in Path(f"/proc/{qemu.pid}/status").read_text().splitlines())
    assert 0 not in {*qemu.uids(), *qemu.gids()}
    assert status["Groups"].strip() == ""
    assert {status[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {"0" * 16}
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    given = {"root.qcow2", "root.ext4", "data.raw", "async.raw", "vmlinux", "initramfs.cpio"}
    files = {Path(file.path) for file in qemu.open_files()}
    assert {file.name for file in files} == given
    assert not any("monitor" in word for word in qemu.cmdline())


def test_sockets_are_their_owners(engine: Engine) -> None:
    assert {path.stat().st_mode & 0o777 for path in (engine.api, engine.vsock)} == {0o600}


def test_the_guest_sees_what_was_asked(engine: Engine) -> None:
    assert engine.shell("nproc; cat /sys/class/net/eth0/mtu").split() == ["2", "1400"]
    assert "virtio_rng" in engine.shell("cat /sys/class/misc/hw_random/rng_current")
    told = engine.shell("cat /sys/block/vdc/ro /sys/block/vdc/serial; echo; head -c 12 /dev/vdc")
    assert told.split("\n") == ["1", "async", MARK.decode()]
    total = int(engine.shell("awk '/MemTotal/{print $2}' /proc/meminfo"))
    assert total < 768 * 1024


def test_the_console_goes_where_it_was_sent(engine: Engine) -> None:
    engine.shell("echo words from within > /dev/console")
    engine.wait(lambda: b"words from within" in (engine.directory / "serial.log").read_bytes(), 5)
    assert b"words" not in engine.console.read_bytes()


def size(engine: Engine) -> int:
    return int(engine.shell("cat /sys/block/vdb/size")) * 512


def test_a_disk_that_has_grown_is_seen_larger(engine: Engine) -> None:
    path = engine.directory / "data.raw"
    os.truncate(path, 96 * MIB)
    assert size(engine) == 64 * MIB
    engine.must("PATCH", "/drives/data", {"drive_id": "data", "path_on_host": str(path)})
    engine.wait(lambda: size(engine) == 96 * MIB, 10)
    engine.shell("echo at the end | dd of=/dev/vdb bs=1M seek=95 conv=sync oflag=direct")
    with path.open("rb") as file:
        file.seek(95 * MIB)
        assert file.read(10) == b"at the end"


def test_another_file_behind_a_drive_and_back(engine: Engine) -> None:
    """And a qcow2 header that the guest wrote into its raw disk is data when the disk is opened again."""
    evil = engine.directory / "evil.img"
    command = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", "/etc/shadow", str(evil), "1M"]
    subprocess.run(command, check=True)
    header = evil.read_bytes()[:512]
    octal = "".join(f"\\{byte:03o}" for byte in header)
    engine.shell(f"printf '{octal}' | dd of=/dev/vdb bs=512 conv=sync oflag=direct")
    before = size(engine)
    for name, start in (("other.raw", b"other"), ("data.raw", header[:4])):
        path = engine.directory / name
        if not path.exists():
            engine.disk(name, 32, start)
        engine.must("PATCH", "/drives/data", {"drive_id": "data", "path_on_host": str(path)})
        engine.wait(lambda path=path: size(engine) == path.stat().st_size, 10)
        told = engine.shell("dd if=/dev/vdb bs=512 count=1 iflag=direct status=none | od -An -c | head -1")
        assert "".join(told.split()).encode().startswith(b"QFI373" if name == "data.raw" else b"other")
        held = {Path(file.path).name for file in engine.qemu().open_files()} & {"other.raw", "data.raw"}
        assert held == {name}, "QEMU keeps a file that no drive uses"
    assert size(engine) == before
    shown = engine.ask("GET", "/vm/config")[1]["drives"]
    assert [drive["path_on_host"] for drive in shown if drive["drive_id"] == "data"] == [str(path)]


def test_a_patch_that_cannot_be_done_changes_nothing(engine: Engine) -> None:
    before = engine.ask("GET", "/vm/config")[1]
    for body, said in (
        ({"path_on_host": "/no/such/disk"}, "/no/such/disk"),
        ({"path_on_host": "/dev/null"}, "neither a regular file"),
        ({"path_on_host": str(engine.root)}, "lock"),
    ):
        status, reply = engine.ask("PATCH", "/drives/data", {"drive_id": "data", **body})
        assert (status, said in reply["fault_message"]) == (400, True), reply
    status, reply = engine.ask("PATCH", "/drives/nobody", {"drive_id": "nobody"})
    assert (status, "nobody" in reply["fault_message"]) == (400, True)
    smaller = engine.disk("smaller.raw", 1)
    status, reply = engine.ask("PATCH", "/drives/async", {"drive_id": "async", "path_on_host": str(smaller)})
    assert (status, "read-only" in reply["fault_message"]) == (400, True)
    assert engine.ask("GET", "/vm/config")[1] == before
    assert engine.shell("head -c 12 /dev/vdc") == MARK.decode()


def test_a_block_device_behind_a_drive(engine: Engine) -> None:
    if os.geteuid() != 0:
        pytest.skip("loop devices are root's")
    image, back = engine.disk("loop.img", 8, b"on a loop"), engine.directory / "data.raw"
    made = subprocess.run(["losetup", "--find", "--show", str(image)], capture_output=True, text=True, check=False)
    if made.returncode != 0:
        pytest.skip(f"no loop device can be made here: {made.stderr.strip()}")
    loop = made.stdout.strip()
    try:
        engine.must("PATCH", "/drives/data", {"drive_id": "data", "path_on_host": loop})
        engine.wait(lambda: size(engine) == 8 * MIB, 10)
        assert engine.shell("dd if=/dev/vdb bs=512 count=1 iflag=direct status=none | head -c 9") == "on a loop"
    finally:
        engine.must("PATCH", "/drives/data", {"drive_id": "data", "path_on_host": str(back)})
        subprocess.run(["losetup", "--detach", loop], check=True)


def test_a_limit_holds_and_can_be_lifted(engine: Engine) -> None:
    def seconds() -> float:
        began = time.monotonic()
        engine.shell("dd if=/dev/vdb of=/dev/null bs=64k count=48 iflag=direct status=none")
        return time.monotonic() - began

    def limit(size: int) -> None:
        limiter = {"bandwidth": {"size": size, "refill_time": 1000}}
        engine.must("PATCH", "/drives/data", {"drive_id": "data", "rate_limiter": limiter})

    limit(MIB)
    slow = seconds()
    limit(0)
    fast = seconds()
    assert slow > 1.5, "3 MiB at 1 MiB/s after a burst of 1 MiB"
    assert fast < slow / 2


def test_the_balloon_takes_and_gives_back(engine: Engine) -> None:
    engine.shell("modprobe virtio_balloon")

    def actual() -> int:
        return int(engine.ask("GET", "/balloon/statistics")[1]["actual_mib"])

    def total() -> int:
        return int(engine.ask("GET", "/balloon/statistics")[1].get("total_memory", 0))

    engine.wait(total, 10)
    before = total()
    engine.must("PATCH", "/balloon", {"amount_mib": 128})
    engine.wait(lambda: actual() == 128, 60)
    engine.wait(lambda: total() <= before - 128 * MIB, 10)
    engine.must("PATCH", "/balloon", {"amount_mib": 0})
    engine.wait(lambda: actual() == 0, 60)


def test_pause_and_resume(engine: Engine) -> None:
    before = engine.shell("echo alive")
    engine.must("PATCH", "/vm", {"state": "Paused"})
    assert engine.ask("GET", "/")[1]["state"] == "Paused"
    qemu = engine.qemu()
    used = qemu.cpu_times()
    time.sleep(3)
    spent = qemu.cpu_times()
    assert (spent.user + spent.system) - (used.user + used.system) < 0.1, "a paused machine uses the processor"
    engine.must("PATCH", "/vm", {"state": "Resumed"})
    assert engine.shell("echo alive") == before


def test_an_idle_engine_sleeps(engine: Engine) -> None:
    """Of banger-vmm itself: what an idle guest does is its own affair."""
    assert engine.process is not None
    vmm = psutil.Process(engine.process.pid)
    used = vmm.cpu_times()
    time.sleep(5)
    spent = vmm.cpu_times()
    assert (spent.user + spent.system) - (used.user + used.system) < 0.1


def test_a_guest_connects_to_the_host(engine: Engine) -> None:
    got: list[bytes] = []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{engine.vsock}_5005")
        listener.listen()
        listener.settimeout(30)

        def serve() -> None:
            stream, _ = listener.accept()
            with stream:
                data = b""
                while chunk := stream.recv(65536):
                    data += chunk
                got.append(data)
                stream.sendall(b"%d" % len(data))

        thread = threading.Thread(target=serve)
        thread.start()
        script = (
            "import socket; s = socket.socket(socket.AF_VSOCK); s.connect((2, 5005)); s.sendall(b'x' * 3000000); "
            "s.shutdown(1); print(s.recv(100).decode())"
        )
        assert engine.shell(f'python3 -c "{script}"').strip() == "3000000"
        thread.join(10)
    Path(f"{engine.vsock}_5005").unlink()
    assert got == [b"x" * 3_000_000]
    refused = "import socket; s = socket.socket(socket.AF_VSOCK); s.connect((2, 5006))"
    engine.shell(f'python3 -c "{refused}" 2>/dev/null', status=1)


def test_ten_thousand_connections_leave_nothing(engine: Engine) -> None:
    assert engine.process is not None
    vmm = psutil.Process(engine.process.pid)

    def connect(port: int) -> bytes:
        with socket.socket(socket.AF_UNIX) as stream:
            stream.settimeout(10)
            stream.connect(str(engine.vsock))
            stream.sendall(b"CONNECT %d\n" % port)
            return stream.recv(64)

    assert all(connect(1024).startswith(b"OK ") for _ in range(100))
    fds, memory = vmm.num_fds(), vmm.memory_full_info().pss
    for number in range(10_000):
        assert connect(1024 if number % 20 == 0 else 9999).startswith(b"OK ") is (number % 20 == 0)
    engine.wait(lambda: vmm.num_fds() <= fds, 10)
    assert vmm.memory_full_info().pss - memory < 2 * MIB


def test_it_takes_less_than_twenty_mebibytes(engine: Engine) -> None:
    """After everything above, and before: what Python does not give back counts."""
    assert engine.process is not None
    assert psutil.Process(engine.process.pid).memory_full_info().pss < 20 * MIB


def test_metrics_tell_what_happened(engine: Engine) -> None:
    engine.must("PUT", "/actions", {"action_type": "FlushMetrics"})
    engine.shell("dd if=/dev/vdc of=/dev/null bs=1M count=8 iflag=direct status=none")
    engine.must("PUT", "/actions", {"action_type": "FlushMetrics"})
    line = json.loads((engine.directory / "metrics").read_text().splitlines()[-1])
    assert 8 * MIB <= line["block_async"]["read_bytes"] <= line["block"]["read_bytes"] < 64 * MIB
    assert line["vsock"]["rx_bytes_count"] > 0
    assert line["vsock"]["conns_added"] >= 1
    assert abs(line["utc_timestamp_ms"] / 1000 - time.time()) < 5


def test_the_boot_timer_is_read(engine: Engine) -> None:
    # mov edx, 0x3f0; mov al, 123; out dx, al; ret
    script = (
        "import ctypes, mmap; ctypes.CDLL(None).ioperm(0x3f0, 1, 1); page = mmap.mmap(-1, 4096, prot=7); "
        "page.write(bytes.fromhex('baf0030000b07beec3')); "
        "ctypes.CFUNCTYPE(None)(ctypes.addressof(ctypes.c_char.from_buffer(page)))()"
    )
    engine.shell(f'python3 -c "{script}"')
    engine.wait(lambda: "Guest-boot-time = " in engine.log.read_text(), 5)


def test_when_qemu_dies_all_of_it_ends_within_a_second(images: Path) -> None:
    made = Engine(images)
    try:
        made.launch()
        made.configure()
        made.start()
        made.qemu().kill()
        began = time.monotonic()
        assert made.process is not None
        assert made.process.wait(10) == 1
        assert time.monotonic() - began < 1
        assert not list(made.directory.glob("*.sock"))
    finally:
        made.close()


def test_when_the_engine_is_killed_qemu_dies_too(images: Path) -> None:
    made = Engine(images)
    try:
        made.launch()
        made.configure()
        made.start()
        qemu = made.qemu()
        assert made.process is not None
        made.process.kill()
        qemu.wait(5)
        made.process.wait()
        made.api.unlink()
        made.vsock.unlink()
    finally:
        made.close()


def test_told_to_end_while_it_starts_a_machine_it_ends_well(images: Path) -> None:
    made = Engine(images)
    try:
        vmm = made.launch()
        made.configure()
        answers: list[int] = []
        starting = threading.Thread(target=lambda: answers.append(made.ask(*START)[0]))
        starting.start()
        made.wait(vmm.children, 10)
        began = time.monotonic()
        vmm.terminate()
        assert made.process is not None
        assert made.process.wait(10) == 0
        assert time.monotonic() - began < 2.5
        starting.join()
        assert answers == [204]
    finally:
        made.close()


def test_a_machine_from_a_file_without_an_api(images: Path) -> None:
    made = Engine(images)
    try:
        # as Firecracker itself writes such files: with nulls
        nulls = dict.fromkeys(("balloon", "cpu-config", "logger", "metrics", "mmds-config", "memory-hotplug"))
        (made.directory / "vm.json").write_text(json.dumps(made.configuration() | nulls | {"pmem": []}))
        words = ["--no-api", "--config-file", "vm.json", "--id", "by-file", "--level", "Warning", "--show-level"]
        made.launch(*words, "--log-path", "my.log", "--metrics-path", "my.metrics", api=False)
        made.until_healthy()
        made.shell("(sleep 0.3; poweroff -f) >/dev/null 2>&1 &")
        assert made.process is not None
        assert made.process.wait(30) == 0
        assert b"Debian" in made.console.read_bytes() or made.console.stat().st_size > 0
        assert (made.directory / "my.log").read_text() == ""
        assert json.loads((made.directory / "my.metrics").read_text().splitlines()[-1])["api_server"]
    finally:
        made.close()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"boot-source": {"kernel_image_path": "/no/such/kernel"}}, "/no/such/kernel"),
        ({"mmds-config": {"network_interfaces": ["eth0"]}}, "mmds-config is not supported"),
        ({"machine-config": {"vcpu_count": 0, "mem_size_mib": 64}}, "vcpu_count"),
        ({"drivez": []}, "drivez"),
        ({"vsock": {"guest_cid": 3, "uds_path": "/no/such/directory/v.sock"}}, "/no/such/directory/v.sock"),
        ({"boot-source": None}, "boot-source is missing"),
        ({"boot-source": {"kernel_image_path": "/etc/passwd"}}, "neither an uncompressed ELF nor a bzImage"),
    ],
)
def test_a_bad_file_is_one_clear_line(images: Path, change: dict[str, object], said: str) -> None:
    made = Engine(images)
    try:
        (made.directory / "vm.json").write_text(json.dumps(made.configuration() | change))
        made.launch("--no-api", "--config-file", "vm.json", "--boot-timer", api=False)
        assert made.process is not None
        assert made.process.wait(30) == 2
        errors = [line for line in made.log.read_text().splitlines() if line.startswith("error: ")]
        assert len(errors) == 1
        assert said in errors[0]
        assert "Traceback" not in made.log.read_text()
    finally:
        made.close()
