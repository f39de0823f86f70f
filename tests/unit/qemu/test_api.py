"""The API's rules, over a real Unix socket, with a pretending VM behind it."""

import asyncio
import json
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from banger.model.errors import CommandFailed
from banger.qemu.api import Api
from banger.qemu.machine import Configuration
from banger.qemu.server import BODY_MAX, Server


class PretendedVmm:
    """Takes the place of QEMU: notes what it was told."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.broken = False

    async def start(self, config: Configuration) -> None:
        if self.broken:
            raise CommandFailed("the VM did not start: no luck")
        self.told.append("start")

    async def command(self, name: str, **_: object) -> None:
        self.told.append(name)

    async def ctrl_alt_del(self) -> None:
        self.told.append("ctrl-alt-del")


class Client:
    def __init__(self, path: Path, vmm: PretendedVmm) -> None:
        self.path = path
        self.vmm = vmm

    def open(self) -> socket.socket:
        stream = socket.socket(socket.AF_UNIX)
        stream.settimeout(10)
        stream.connect(str(self.path))
        return stream

    def raw(self, data: bytes) -> bytes:
        with self.open() as stream:
            stream.sendall(data)
            stream.shutdown(socket.SHUT_WR)
            reply = b""
            while chunk := stream.recv(65536):
                reply += chunk
            return reply

    def ask(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        data = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n\r\n".encode()
        first, _, rest = self.raw(head + data).partition(b"\r\n\r\n")
        return int(first.split()[1]), json.loads(rest) if rest else None

    def fault(self, method: str, path: str, body: Any = None) -> str:
        status, document = self.ask(method, path, body)
        assert status == 400, document
        assert list(document) == ["fault_message"]
        return str(document["fault_message"])


@contextmanager
def serving(path: Path) -> Iterator[Client]:
    vmm = PretendedVmm()
    loop = asyncio.new_event_loop()
    api = Api("vm-1", vmm)  # type: ignore[arg-type]
    server = loop.run_until_complete(asyncio.start_unix_server(Server(api.handle).connection, path))
    thread = Thread(target=loop.run_forever)
    thread.start()
    try:
        yield Client(path, vmm)
    finally:

        async def end() -> None:
            server.close()
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(end(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


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
    assert (whole["boot-source"], whole["vsock"], whole["network-interfaces"]) == (boot, vsock, [nic])
    assert client.ask("PUT", "/actions", {"action_type": "InstanceStart"}) == (204, None)
    assert client.ask("GET", "/")[1]["state"] == "Running"
    assert client.ask("PATCH", "/vm", {"state": "Paused"})[0] == 204
    assert client.ask("GET", "/")[1]["state"] == "Paused"
    assert client.ask("PATCH", "/vm", {"state": "Resumed"})[0] == 204
    assert client.ask("PUT", "/actions", {"action_type": "SendCtrlAltDel"})[0] == 204
    assert client.vmm.told == ["start", "stop", "cont", "ctrl-alt-del"]


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
        ("/machine-config", {"vcpu_count": 1, "mem_size_mib": 1, "smt": True}, "smt"),
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
        ("PUT", "/drives/", "Invalid request method and/or path"),
        ("PUT", "/drives/a-b", "Invalid request method and/or path"),
        ("PUT", "/balloon", "not supported"),
        ("PUT", "/snapshot/create", "not supported"),
        ("PATCH", "/drives/root", "not supported"),
        ("PUT", "/mmds/config", "not supported"),
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
