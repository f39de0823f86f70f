"""The API's rules, over a real Unix socket, with a pretending VM behind it."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from banger.qemu.options import BODY_MAX
from tests.support.vmm import Client, serving


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Client]:
    with serving(tmp_path / "api.sock") as made:
        yield made


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    for name in ("kernel", "initrd", "root.qcow2", "data.raw"):
        (tmp_path / name).write_bytes(b"x")
    return {name: str(tmp_path / name) for name in ("kernel", "initrd", "root.qcow2", "data.raw")}


def root(files: dict[str, str], **more: Any) -> dict[str, Any]:
    return {"drive_id": "root", "is_root_device": True, "path_on_host": files["root.qcow2"], **more}


def test_the_whole_life_of_a_machine(client: Client, files: dict[str, str]) -> None:
    described = {"app_name": "banger-vmm", "id": "vm-1", "state": "Not started"}
    assert described.items() <= client.ask("GET", "/")[1].items()
    assert client.ask("PUT", "/machine-config", {"vcpu_count": 2, "mem_size_mib": 256}) == (204, None)
    assert client.ask("PATCH", "/machine-config", {"mem_size_mib": 512}) == (204, None)
    boot = {"kernel_image_path": files["kernel"], "initrd_path": files["initrd"], "boot_args": "quiet"}
    assert client.ask("PUT", "/boot-source", boot)[0] == 204
    assert client.ask("PUT", "/drives/root", root(files))[0] == 204
    nic = {"iface_id": "eth0", "host_dev_name": "user:closed", "guest_mac": "02:00:00:00:00:01"}
    assert client.ask("PUT", "/network-interfaces/eth0", nic)[0] == 204
    vsock = {"guest_cid": 3, "uds_path": "/v.sock"}
    assert client.ask("PUT", "/vsock", vsock)[0] == 204
    whole = client.ask("GET", "/vm/config")[1]
    assert whole["machine-config"] == {"vcpu_count": 2, "mem_size_mib": 512}
    full = {"vcpu_count": 2, "mem_size_mib": 512, "smt": False, "track_dirty_pages": False, "huge_pages": "None"}
    assert client.ask("GET", "/machine-config") == (200, full)
    assert (whole["boot-source"], whole["vsock"], whole["network-interfaces"]) == (boot, vsock, [nic])
    assert client.ask("PUT", "/actions", {"action_type": "InstanceStart"}) == (204, None)
    assert client.ask("GET", "/")[1]["state"] == "Running"
    assert client.ask("PATCH", "/vm", {"state": "Paused"})[0] == 204
    assert client.ask("GET", "/")[1]["state"] == "Paused"
    assert client.ask("PATCH", "/vm", {"state": "Resumed"})[0] == 204
    assert client.ask("PUT", "/actions", {"action_type": "SendCtrlAltDel"})[0] == 204
    assert client.vmm.told == ["start", "pause", "resume", "ctrl-alt-del"]


def test_before_and_after_the_start_are_kept_apart(client: Client, files: dict[str, str]) -> None:
    before = "not supported before starting"
    assert before in client.fault("PATCH", "/vm", {"state": "Paused"})
    assert before in client.fault("PUT", "/actions", {"action_type": "SendCtrlAltDel"})
    client.ask("PUT", "/boot-source", {"kernel_image_path": files["kernel"]})
    client.ask("PUT", "/actions", {"action_type": "InstanceStart"})
    after = "not supported after starting"
    for path, body in (
        ("/machine-config", {"vcpu_count": 2, "mem_size_mib": 256}),
        ("/boot-source", {"kernel_image_path": files["kernel"]}),
        ("/drives/root", root(files)),
        ("/network-interfaces/e", {"iface_id": "e", "host_dev_name": "user:nat"}),
        ("/vsock", {"guest_cid": 3, "uds_path": "/v"}),
        ("/actions", {"action_type": "InstanceStart"}),
    ):
        assert after in client.fault("PUT", path, body)


def test_a_start_that_failed_can_be_tried_again(client: Client) -> None:
    client.vmm.broken = True
    assert "no luck" in client.fault("PUT", "/actions", {"action_type": "InstanceStart"})
    assert client.ask("GET", "/")[1]["state"] == "Not started"
    client.vmm.broken = False
    assert client.ask("PUT", "/actions", {"action_type": "InstanceStart"})[0] == 204


def test_a_put_overwrites_and_one_root_device_is_enough(client: Client, files: dict[str, str]) -> None:
    client.ask("PUT", "/drives/root", root(files))
    client.ask("PUT", "/drives/root", root(files, is_read_only=True))
    assert client.ask("GET", "/vm/config")[1]["drives"] == [root(files, is_read_only=True)]
    second = root(files) | {"drive_id": "other"}
    assert "root block device already exists" in client.fault("PUT", "/drives/other", second)
    assert client.ask("PUT", "/drives/other", second | {"is_root_device": False})[0] == 204


@pytest.mark.parametrize(
    ("path", "body", "said"),
    [
        ("/machine-config", {"vcpu_count": 0, "mem_size_mib": 1}, "vcpu_count"),
        ("/machine-config", {"vcpu_count": 33, "mem_size_mib": 1}, "vcpu_count"),
        ("/machine-config", {"vcpu_count": 1, "mem_size_mib": 0}, "mem_size_mib"),
        ("/machine-config", {"vcpu_count": 1}, "mem_size_mib"),
        ("/machine-config", {"vcpu_count": 1, "mem_size_mib": 1, "cpus": 1}, "cpus"),
        (
            "/machine-config",
            {"vcpu_count": 1, "mem_size_mib": 1, "smt": True, "track_dirty_pages": True},
            "track_dirty_pages",
        ),
        ("/machine-config", {"vcpu_count": "1", "mem_size_mib": 1}, "int"),
        ("/boot-source", {"kernel_image_path": "/no/such/kernel"}, "/no/such/kernel"),
        ("/boot-source", {}, "kernel_image_path"),
        ("/drives/root", {"drive_id": "boot", "is_root_device": True, "path_on_host": "/dev/null"}, "does not match"),
        ("/drives/root", {"drive_id": "root", "is_root_device": True}, "path_on_host"),
        ("/drives/root", {"drive_id": "root", "is_root_device": True, "path_on_host": "/no/disk"}, "/no/disk"),
        ("/network-interfaces/a", {"iface_id": "a", "host_dev_name": "user:all"}, "user:all"),
        ("/network-interfaces/a", {"iface_id": "a", "host_dev_name": "t", "guest_mac": "nonsense"}, "guest_mac"),
        ("/vsock", {"guest_cid": 2, "uds_path": "/v"}, "guest_cid"),
        ("/vsock", {"guest_cid": 3, "uds_path": "/" + "v" * 108}, "uds_path"),
        ("/actions", {"action_type": "Explode"}, "Explode"),
        ("/actions", b"{", "deserializing"),
        ("/actions", b"[" * 20000, "deserializing"),
        ("/actions", b"\xff\xfe", "deserializing"),
    ],
)
def test_what_is_wrong_is_named(client: Client, path: str, body: Any, said: str) -> None:
    assert said in client.fault("PUT", path, body)
    assert client.ask("GET", "/")[0] == 200


@pytest.mark.parametrize(
    ("method", "path", "said"),
    [
        ("GET", "/nothing", "Invalid request method and/or path"),
        ("DELETE", "/", "Invalid request method and/or path"),
        ("PUT", "/drives/", "ID cannot be empty"),
        ("PUT", "/drives/a-b", "alphanumeric"),
        ("PUT", "/drives/a/b", "Invalid request method and/or path"),
        ("PUT", "/vm/config", "Invalid request method and/or path"),
        ("GET", "/machine-config", "GET request cannot have a body"),
        ("PUT", "/snapshot/create", "not supported by banger-vmm: it cannot save"),
        ("PUT", "/mmds/config", "not supported by banger-vmm: QEMU's network cards"),
        ("GET", "/mmds", "not supported by banger-vmm"),
        ("PUT", "/cpu-config", "not supported by banger-vmm"),
    ],
)
def test_unknown_and_unsupported_paths_say_which_they_are(client: Client, method: str, path: str, said: str) -> None:
    assert said in client.fault(method, path, {})


def test_one_connection_serves_many_requests(client: Client) -> None:
    request = b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n"
    with client.open() as stream:
        for _ in range(3):
            stream.sendall(request)
            assert stream.recv(65536).startswith(b"HTTP/1.1 200")
        stream.sendall(request + request)  # pipelined
        reply = b""
        while reply.count(b"HTTP/1.1 200") < 2:
            reply += stream.recv(65536)


def test_too_large_a_body_is_refused_and_the_connection_ends(client: Client) -> None:
    assert client.ask("PUT", "/actions", b" " * BODY_MAX)[0] == 400
    head = f"PUT /actions HTTP/1.1\r\nHost: x\r\nContent-Length: {10 << 30}\r\n\r\n".encode()
    reply = client.raw(head + b"x" * (BODY_MAX + 1))
    assert reply.startswith(b"HTTP/1.1 400")
    assert b"larger than 51200" in reply


@pytest.mark.parametrize(
    "data", [b"\x00\x01\x02\r\n\r\n", b"GET\r\n\r\n", b"G" * 100_000, b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 5000]
)
def test_garbage_and_endless_headers_get_an_answer_or_a_closed_door(client: Client, data: bytes) -> None:
    try:
        reply = client.raw(data)
    except (ConnectionResetError, BrokenPipeError):
        reply = b""
    assert reply == b"" or reply.startswith(b"HTTP/1.1 400")
    assert client.ask("GET", "/")[0] == 200


def test_clients_that_say_nothing_do_not_keep_others_out(client: Client) -> None:
    silent = [client.open() for _ in range(20)]
    half = client.open()
    half.sendall(b"PUT /actions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
    assert client.ask("GET", "/")[0] == 200
    for stream in (*silent, half):
        stream.close()
    assert client.ask("GET", "/")[0] == 200


def test_more_than_32_connections_are_turned_away_and_room_comes_back(client: Client) -> None:
    streams = [client.open() for _ in range(32)]
    for stream in streams:
        stream.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert stream.recv(65536)
    with client.open() as one_too_many:
        assert one_too_many.recv(10) == b""
    for stream in streams:
        stream.close()
    wait_until(lambda: bool(client.raw(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")))


def wait_until(true: Callable[[], bool]) -> None:
    for _ in range(100):
        try:
            if true():
                return
        except OSError:
            continue
    raise AssertionError("it did not become true")


def started(client: Client, files: dict[str, str]) -> None:
    client.ask("PUT", "/boot-source", {"kernel_image_path": files["kernel"]})
    assert client.ask("PUT", "/actions", {"action_type": "InstanceStart"})[0] == 204


@pytest.mark.parametrize("method", ["PUT", "PATCH"])
def test_a_request_without_a_body_says_so(client: Client, method: str) -> None:
    assert client.fault(method, "/machine-config") == f"Empty {method} request."
    assert client.fault("PATCH", "/machine-config", {}) == "Empty PATCH request."


def test_a_null_is_a_field_left_out(client: Client, files: dict[str, str]) -> None:
    """Firecracker's own GET /vm/config and example files are full of them."""
    drive = root(files, partuuid=None, rate_limiter=None, socket=None, io_engine="Sync")
    assert client.ask("PUT", "/drives/root", drive)[0] == 204
    assert client.ask("GET", "/vm/config")[1]["drives"] == [root(files, io_engine="Sync")]
    assert "drive_id" in client.fault("PUT", "/drives/root", root(files, drive_id=None))


def test_a_drive_of_a_running_machine_is_patched_and_no_other(client: Client, files: dict[str, str]) -> None:
    change = {"drive_id": "root", "path_on_host": files["data.raw"]}
    assert "before starting" in client.fault("PATCH", "/drives/root", change)
    started(client, files)
    assert client.ask("PATCH", "/drives/root", change)[0] == 204
    assert "does not match" in client.fault("PATCH", "/drives/other", change)
    assert "is_root_device" in client.fault("PATCH", "/drives/root", change | {"is_root_device": True})
    assert client.vmm.told == ["start", "drive root"]


def test_limits_of_network_cards_are_refused_with_a_way_out(client: Client, files: dict[str, str]) -> None:
    nic = {"iface_id": "e", "host_dev_name": "user:nat"}
    limiter = {"bandwidth": {"size": 1, "refill_time": 1}}
    assert "`tc`" in client.fault("PUT", "/network-interfaces/e", nic | {"rx_rate_limiter": limiter})
    assert client.ask("PUT", "/network-interfaces/e", nic | {"mtu": 1400})[0] == 204
    started(client, files)
    patch = {"iface_id": "e", "tx_rate_limiter": limiter}
    assert "`tc`" in client.fault("PATCH", "/network-interfaces/e", patch)


def test_a_tap_or_a_mac_cannot_be_used_twice(client: Client) -> None:
    first = {"iface_id": "a", "host_dev_name": "tap9", "guest_mac": "02:00:00:00:00:AA"}
    assert client.ask("PUT", "/network-interfaces/a", first)[0] == 204
    second = {"iface_id": "b", "host_dev_name": "tap8", "guest_mac": "02:00:00:00:00:aa"}
    assert "MAC address is already in use" in client.fault("PUT", "/network-interfaces/b", second)
    second = {"iface_id": "b", "host_dev_name": "tap9"}
    assert "tap is already in use" in client.fault("PUT", "/network-interfaces/b", second)


def test_a_balloon_from_its_birth_to_its_statistics(client: Client, files: dict[str, str]) -> None:
    assert "No balloon" in client.fault("GET", "/balloon")
    assert "too large" in client.fault("PUT", "/balloon", {"amount_mib": 129, "deflate_on_oom": True})
    assert "free_page_hinting" in client.fault(
        "PUT", "/balloon", {"amount_mib": 1, "deflate_on_oom": True, "free_page_hinting": True}
    )
    balloon = {"amount_mib": 16, "deflate_on_oom": True, "stats_polling_interval_s": 1}
    assert client.ask("PUT", "/balloon", balloon)[0] == 204
    assert balloon.items() <= client.ask("GET", "/balloon")[1].items()
    assert "smaller than the balloon" in client.fault("PUT", "/machine-config", {"vcpu_count": 1, "mem_size_mib": 8})
    for method, path, body in (
        ("PATCH", "/balloon", {"amount_mib": 32}),
        ("GET", "/balloon/statistics", None),
        ("PATCH", "/balloon/statistics", {"stats_polling_interval_s": 2}),
    ):
        assert "before starting" in client.fault(method, path, body)
    started(client, files)
    assert client.ask("PATCH", "/balloon", {"amount_mib": 32})[0] == 204
    assert client.ask("GET", "/balloon/statistics")[1]["target_mib"] == 32
    assert client.ask("PATCH", "/balloon/statistics", {"stats_polling_interval_s": 2})[0] == 204
    assert "turned on or off" in client.fault("PATCH", "/balloon/statistics", {"stats_polling_interval_s": 0})
    assert "too large" in client.fault("PATCH", "/balloon", {"amount_mib": 1000})
    assert client.vmm.told == ["start", "balloon 32 of 128", "poll 2"]


def test_statistics_that_were_not_asked_for_are_refused(client: Client, files: dict[str, str]) -> None:
    client.ask("PUT", "/balloon", {"amount_mib": 0, "deflate_on_oom": False})
    started(client, files)
    assert "not enabled" in client.fault("GET", "/balloon/statistics")


def test_the_log_goes_where_it_is_told_and_has_firecrackers_form(client: Client, tmp_path: Path) -> None:
    log = tmp_path / "vm.log"
    logger = {"log_path": str(log), "level": "Debug", "show_level": True, "show_log_origin": True}
    assert client.ask("PUT", "/logger", logger)[0] == 204
    client.ask("GET", "/version")
    line = log.read_text().splitlines()[-1]
    assert line.endswith("GET /version -> 200")
    assert " [vm-1:main:INFO:server.py:" in line
    assert client.ask("PUT", "/logger", {"level": "ERROR"})[0] == 204
    client.ask("GET", "/version")
    assert log.read_text().splitlines()[-1] == line
    assert "/no/such" in client.fault("PUT", "/logger", {"log_path": "/no/such/log"})
    assert "level" in client.fault("PUT", "/logger", {"level": "Loud"})


def test_metrics_are_counted_since_the_last_flush(client: Client, files: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "metrics"
    flush = {"action_type": "FlushMetrics"}
    settings = {"metrics_path": str(path), "emit_id": True, "properties": {"owner": "me"}}
    assert client.ask("PUT", "/metrics", settings)[0] == 204
    assert "already initialized" in client.fault("PUT", "/metrics", settings)
    assert "before starting" in client.fault("PUT", "/actions", flush)
    client.fault("PUT", "/drives/root", {})
    started(client, files)
    assert client.ask("PUT", "/actions", flush)[0] == 204
    assert client.ask("PUT", "/actions", flush)[0] == 204
    first, second = (json.loads(line) for line in path.read_text().splitlines())
    assert (first["id"], first["properties"]) == ("vm-1", {"owner": "me"})
    assert first["put_api_requests"]["drive_count"] == first["put_api_requests"]["drive_fails"] == 1
    assert first["block"]["read_bytes"] == 512
    assert second["put_api_requests"]["drive_count"] == second["block"]["read_bytes"] == 0
    assert second["put_api_requests"]["actions_count"] == 1


def test_a_pipe_that_nobody_reads_keeps_nobody_waiting(client: Client, files: dict[str, str], tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert client.ask("PUT", "/metrics", {"metrics_path": str(tmp_path / "pipe")})[0] == 204
    started(client, files)
    for _ in range(300):
        assert client.ask("PUT", "/actions", {"action_type": "FlushMetrics"})[0] == 204
    assert client.ask("GET", "/")[0] == 200


def test_the_state_is_what_the_machine_says(client: Client, files: dict[str, str]) -> None:
    """QEMU itself pauses a guest whose disk cannot be written."""
    started(client, files)
    client.vmm.running = False
    assert client.ask("GET", "/")[1]["state"] == "Paused"
