"""One contract, two engines: the same tests against banger-vmm and, where there are a binary and KVM, Firecracker.

BANGER_TEST_FIRECRACKER names the binary; else the one on PATH is taken.
"""

import json
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.engine import VMM, Engine

MIB = 1 << 20


def program(name: str) -> tuple[str, ...]:
    """The words that start an engine; skips, saying why, where it cannot run."""
    if name == "banger-vmm":
        return (VMM,)
    found = os.environ.get("BANGER_TEST_FIRECRACKER") or shutil.which("firecracker")
    if not found:
        pytest.skip("there is no firecracker here")
    verdict = json.loads(subprocess.run([VMM, "--probe-accelerator"], capture_output=True, check=True).stdout)
    if verdict["accelerator"] != "kvm":
        pytest.skip(f"firecracker needs KVM: {verdict['reason']}")
    return (found,)


@pytest.fixture(scope="module", params=["banger-vmm", "firecracker"])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def unborn(images: Path, name: str) -> Iterator[Engine]:
    """An engine whose machine has not been started."""
    made = Engine(images, program=program(name), raw=True)
    try:
        made.launch()
        yield made
    finally:
        made.close()


@pytest.fixture(scope="module")
def engine(images: Path, name: str) -> Iterator[Engine]:
    """An engine with a healthy machine."""
    made = Engine(images, program=program(name), raw=True)
    try:
        data = made.disk("data.raw", 16)
        drives = [
            *made.configuration()["drives"],
            {"drive_id": "data", "path_on_host": str(data), "is_root_device": False, "is_read_only": False},
        ]
        balloon = {"amount_mib": 0, "deflate_on_oom": False, "stats_polling_interval_s": 1}
        made.boot(drives=drives, balloon=balloon, metrics={"metrics_path": str(made.directory / "metrics")})
        yield made
    finally:
        made.close()


def refused(engine: Engine, method: str, path: str, body: Any) -> str:
    status, reply = engine.ask(method, path, body)
    assert status == 400, reply
    assert list(reply) == ["fault_message"]
    return str(reply["fault_message"])


def test_it_says_what_it_is(unborn: Engine) -> None:
    status, info = unborn.ask("GET", "/")
    assert (status, info["state"], info["id"]) == (200, "Not started", "anonymous-instance")
    assert set(info) == {"app_name", "id", "state", "vmm_version"}
    assert set(unborn.ask("GET", "/version")[1]) == {"firecracker_version"}
    machine = unborn.ask("GET", "/machine-config")[1]
    assert (machine["vcpu_count"], machine["mem_size_mib"], machine["smt"]) == (1, 128, False)


def test_what_is_wrong_is_refused(unborn: Engine) -> None:
    root = unborn.configuration()["drives"][0] | {"is_read_only": False}
    unborn.must("PUT", "/drives/root", root)
    unborn.must("PUT", "/drives/root", root)
    assert "root block device" in refused(unborn, "PUT", "/drives/two", root | {"drive_id": "two"})
    for method, path, body in (
        ("PUT", "/drives/other", root),
        ("PUT", "/machine-config", {"vcpu_count": 0, "mem_size_mib": 128}),
        ("PUT", "/machine-config", {"vcpu_count": 1, "mem_size_mib": 128, "cpus": 1}),
        ("PUT", "/machine-config", {"vcpu_count": 1}),
        ("PATCH", "/machine-config", {}),
        ("PUT", "/boot-source", {"kernel_image_path": "/no/kernel"}),
        ("PUT", "/vsock", {"guest_cid": 2, "uds_path": "/v"}),
        ("PATCH", "/vm", {"state": "Paused"}),
        ("PATCH", "/drives/root", {"drive_id": "root", "path_on_host": str(unborn.root)}),
        ("PUT", "/actions", {"action_type": "SendCtrlAltDel"}),
        ("PUT", "/actions", {"action_type": "FlushMetrics"}),
        ("PUT", "/actions", {"action_type": "InstanceStart"}),
        ("GET", "/balloon", None),
        ("GET", "/nothing", None),
        ("PUT", "/drives/a-b", root),
    ):
        assert refused(unborn, method, path, body)
    assert unborn.ask("GET", "/")[1]["state"] == "Not started"


def test_a_machine_runs_and_is_reached(engine: Engine) -> None:
    assert engine.ask("GET", "/")[1]["state"] == "Running"
    assert engine.shell("nproc; cut -d' ' -f1 /proc/mounts | grep vda; blockdev --getsize64 /dev/vdb").split() == [
        *("2", "/dev/vda", str(16 * MIB)),
    ]
    assert {"root=/dev/vda", "rw"} <= set(engine.shell("cat /proc/cmdline").split())
    refused(engine, "PUT", "/machine-config", {"vcpu_count": 1, "mem_size_mib": 128})
    refused(engine, "PUT", "/actions", {"action_type": "InstanceStart"})
    config = engine.ask("GET", "/vm/config")[1]
    assert (config["machine-config"]["vcpu_count"], len(config["drives"])) == (2, 2)


def test_vsock_has_the_hybrid_form(engine: Engine) -> None:
    for port, answers in ((1024, True), (4321, False)):
        with socket.socket(socket.AF_UNIX) as stream:
            stream.settimeout(10)
            stream.connect(str(engine.vsock))
            stream.sendall(b"CONNECT %d\n" % port)
            assert stream.recv(64).startswith(b"OK ") is answers


def test_a_disk_that_has_grown(engine: Engine) -> None:
    path = engine.directory / "data.raw"
    os.truncate(path, 24 * MIB)
    engine.must("PATCH", "/drives/data", {"drive_id": "data", "path_on_host": str(path)})
    engine.wait(lambda: engine.shell("cat /sys/block/vdb/size").strip() == str(24 * MIB // 512), 10)


def test_a_limit_and_a_balloon_are_taken(engine: Engine) -> None:
    limiter = {"bandwidth": {"size": 64 * MIB, "refill_time": 1000}}
    engine.must("PATCH", "/drives/data", {"drive_id": "data", "rate_limiter": limiter})
    engine.must("PATCH", "/balloon", {"amount_mib": 16})
    assert engine.ask("GET", "/balloon")[1]["amount_mib"] == 16
    assert engine.ask("GET", "/balloon/statistics")[1]["target_mib"] == 16
    engine.must("PATCH", "/balloon", {"amount_mib": 0})


def test_metrics_are_a_line_of_json(engine: Engine) -> None:
    engine.must("PUT", "/actions", {"action_type": "FlushMetrics"})
    line = json.loads((engine.directory / "metrics").read_text().splitlines()[-1])
    assert line["utc_timestamp_ms"] > 0
    assert line["patch_api_requests"]["drive_count"] >= 1
    assert line["block"]["read_bytes"] >= 0


def test_pause_and_resume(engine: Engine) -> None:
    engine.must("PATCH", "/vm", {"state": "Paused"})
    assert engine.ask("GET", "/")[1]["state"] == "Paused"
    engine.must("PATCH", "/vm", {"state": "Resumed"})
    assert engine.ask("GET", "/")[1]["state"] == "Running"


def test_a_guest_that_reboots_ends_the_engine(engine: Engine) -> None:
    """The last one: what pausing may have done to new connections does not matter to a key press."""
    engine.must("PUT", "/actions", {"action_type": "SendCtrlAltDel"})
    assert engine.process is not None
    assert engine.process.wait(60) == 0
