"""The agent's HTTP side: health, shutdown, limits, hostile requests."""

import asyncio
import json
import os
import sys
from pathlib import Path

import pytest

from banger.guest.agent import http1
from banger.guest.agent.health import service_state
from banger.guest.agent.jsonlite import decode, encode
from banger.model.errors import GuestUnreachable
from banger.system.process import run
from tests.unit.guest.hybrid import AGENT, agent, drop, guest

KB = 1024
_DEADLINE = 30.0


async def ask(socket: Path, request: bytes) -> tuple[int, dict[str, str]]:
    """Send bytes, read the answer: status and JSON body."""
    async with asyncio.timeout(_DEADLINE):
        reader, writer = await asyncio.open_unix_connection(socket)
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.partition(b"Content-Length: ")[2].split(b"\r\n")[0])
        body = await reader.readexactly(length)
        await drop(writer)
    return int(head.split(b" ")[1]), json.loads(body)


def test_health_tells_what_the_kernel_says(tmp_path: Path) -> None:
    async def body() -> None:
        async with guest(tmp_path) as machine:
            health = await machine.health()
        assert health.status == "ok"
        assert health.boot_id == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        assert health.hostname == os.uname().nodename
        assert health.uptime_s > 0
        assert set(health.services) == {"ssh", "opencode"}

    asyncio.run(body())


HOSTILE = [
    (b"GET /healthz\r\n\r\n", 400),
    (b"GET  /healthz HTTP/1.1\r\n\r\n", 400),
    (b"GET /healthz HTTP/2\r\n\r\n", 400),
    (b"\x00\xff\xfe\r\n\r\n", 400),
    (b"GET healthz HTTP/1.1\r\n\r\n", 400),
    (b"GET /healthz HTTP/1.1\r\nno colon\r\n\r\n", 400),
    (b"GET /healthz HTTP/1.1\r\nA: b\nC: d\r\n\r\n", 400),
    (b"GET /healthz HTTP/1.1\r\n folded: x\r\n\r\n", 400),
    (b"GET /nothing HTTP/1.1\r\n\r\n", 404),
    (b"GET /healthz/../exec HTTP/1.1\r\n\r\n", 404),
    (b"POST /healthz HTTP/1.1\r\nContent-Length: 0\r\n\r\n", 405),
    (b"GET /exec HTTP/1.1\r\n\r\n", 405),
    (b"POST /exec HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}", 426),
    (b"POST /exec HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 400),
    (b"POST /exec HTTP/1.1\r\nContent-Length: 1e3\r\n\r\n", 400),
    (b"POST /exec HTTP/1.1\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}", 400),
    (b"POST /exec HTTP/1.1\r\nContent-Length: 1048577\r\n\r\n", 413),
    (b"POST /exec HTTP/1.1\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n", 413),
    (b"POST /exec HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 501),
    (b"GET /healthz HTTP/1.1\r\nA: " + b"x" * (16 * KB) + b"\r\n\r\n", 431),
    (b"GET /healthz HTTP/1.1\r\nA: " + b"x" * (300 * KB), 431),
    (b"GET /healthz HTTP/1.1\r\n" + b"A: b\r\n" * 100 + b"\r\n", 431),
    (b"POST /shutdown HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}", 400),
    (b'POST /shutdown HTTP/1.1\r\nContent-Length: 15\r\n\r\n{"mode": "halt"', 400),
]


def test_hostile_requests_get_a_clear_answer_and_do_no_harm(tmp_path: Path) -> None:
    async def body() -> None:
        async with agent(tmp_path) as socket:
            for request, expected in HOSTILE:
                status, document = await ask(socket, request)
                assert (status, set(document)) == (expected, {"error"}), request[:60]
            assert (await ask(socket, b"GET /healthz HTTP/1.1\r\n\r\n"))[0] == 200

    asyncio.run(body())


EXEC_BODIES = [
    b"",
    b"{",
    b"[]",
    b"null",
    b'{"argv":[]}',
    b'{"argv":"ls"}',
    b'{"argv":["ls",1]}',
    b'{"argv":["ls"]} x',
    b'{"argv":["\\ud800"]}',
    b'{"argv":["ls"],"shell":true}',
    b'{"argv":["ls"],"env":{"":"x"}}',
    b'{"argv":["ls"],"env":{"A=B":"x"}}',
    b'{"argv":["ls"],"env":["A"]}',
    b'{"argv":["ls"],"user":0}',
    b'{"argv":["ls"],"user":"99999999999999999999"}',
    b'{"argv":["ls"],"rows":0}',
    b'{"argv":["ls"],"cols":true}',
    b'{"argv":["ls"],"timeout_s":-1}',
    b'{"argv":["ls"],"timeout_s":NaN}',
    b'{"argv":["ls"],"timeout_s":' + b"9" * 100_000 + b"}",
    b'{"argv":' + b"[" * 1_000_000,
    b'\xff{"argv":["ls"]}',
]


def test_malformed_exec_requests_are_refused_before_the_upgrade(tmp_path: Path) -> None:
    async def body() -> None:
        async with agent(tmp_path) as socket:
            for content in EXEC_BODIES:
                head = b"POST /exec HTTP/1.1\r\nUpgrade: banger-exec\r\nContent-Length: %d\r\n\r\n" % len(content)
                status, document = await ask(socket, head + content)
                assert (status, set(document)) == (400, {"error"}), content[:60]

    asyncio.run(body())


def test_frames_may_follow_the_request_at_once_and_a_bad_one_ends_the_command(tmp_path: Path) -> None:
    content = b'{"argv":["cat"]}'
    head = b"POST /exec HTTP/1.1\r\nUpgrade: banger-exec\r\nContent-Length: %d\r\n\r\n" % len(content)

    async def talk(socket: Path, frames: bytes) -> bytes:
        reader, writer = await asyncio.open_unix_connection(socket)
        writer.write(head + content + frames)
        answer = (await reader.read()).partition(b"\r\n\r\n")[2]
        await drop(writer)
        return answer

    async def body() -> None:
        async with asyncio.timeout(_DEADLINE), agent(tmp_path) as socket:
            good = await talk(socket, b"\x00\x00\x00\x00\x02hi" + b"\x00\x00\x00\x00\x00")
            assert good == b"\x01\x00\x00\x00\x02hi" + b"\x03\x00\x00\x00\x0c" + b'{"status":0}'
            for bad in (b"\x09\x00\x00\x00\x00", b"\x00\xff\xff\xff\xff", b"\x03\x00\x00\x00\x00"):
                assert await talk(socket, bad) == b""

    asyncio.run(body())


def test_more_connections_than_allowed_are_turned_away_and_room_returns(tmp_path: Path) -> None:
    async def body() -> None:
        async with asyncio.timeout(_DEADLINE), agent(tmp_path) as socket:
            held = [await asyncio.open_unix_connection(socket) for _ in range(256)]
            assert (await ask(socket, b"GET /healthz HTTP/1.1\r\n\r\n"))[0] == 503
            for _, writer in held:
                await drop(writer)
            while (await ask(socket, b"GET /healthz HTTP/1.1\r\n\r\n"))[0] != 200:  # noqa: ASYNC110 (the same)
                await asyncio.sleep(0.01)

    asyncio.run(body())


@pytest.mark.parametrize("mode", ["poweroff", "reboot"])
def test_shutdown_asks_for_what_was_wanted(tmp_path: Path, mode: str) -> None:
    program = tmp_path / "init"
    program.write_text(f'#!/bin/sh\necho "$1" >{tmp_path}/asked.tmp && mv {tmp_path}/asked.tmp {tmp_path}/asked\n')
    program.chmod(0o755)

    async def body() -> None:
        async with asyncio.timeout(_DEADLINE), guest(tmp_path, "--shutdown-program", str(program)) as machine:
            await machine.shutdown(mode)  # type: ignore[arg-type]
            while not (tmp_path / "asked").exists():  # noqa: ASYNC110 (the agent is another process)
                await asyncio.sleep(0.01)
        assert (tmp_path / "asked").read_text() == f"{mode}\n"

    asyncio.run(body())


def test_an_agent_outside_a_guest_shuts_nothing_down(tmp_path: Path) -> None:
    async def body() -> None:
        async with guest(tmp_path) as machine:
            with pytest.raises(GuestUnreachable, match="403"):
                await machine.shutdown("poweroff")

    asyncio.run(body())


def test_socket_is_for_its_owner_only(tmp_path: Path) -> None:
    async def body() -> None:
        async with agent(tmp_path) as socket:
            assert socket.stat().st_mode & 0o777 == 0o600

    asyncio.run(body())


@pytest.mark.parametrize(
    ("made", "state"),
    [
        ({"run/systemd/system/x": ""}, "absent"),
        ({"run/systemd/system/x": "", "usr/lib/systemd/system/sshd.service": ""}, "stopped"),
        ({"run/systemd/system/x": "", "sys/fs/cgroup/system.slice/ssh.service/cgroup.procs": "12\n"}, "running"),
        ({"run/systemd/system/x": "", "sys/fs/cgroup/system.slice/ssh.service/cgroup.procs": ""}, "absent"),
        ({"run/openrc/started/sshd": ""}, "running"),
        ({"run/openrc/x": "", "etc/init.d/sshd": ""}, "stopped"),
        ({"etc/sv/sshd/supervise/stat": "run\n"}, "running"),
        ({"etc/sv/sshd/supervise/stat": "down\n"}, "stopped"),
        ({}, "absent"),
    ],
)
def test_service_state_for_each_init(tmp_path: Path, made: dict[str, str], state: str) -> None:
    for name, text in made.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert service_state(("ssh", "sshd"), str(tmp_path)) == state


def test_agent_imports_nothing_that_is_slow_to_import() -> None:
    """Each of these costs tens of milliseconds in an emulated guest, before it can answer."""
    script = (
        f"import sys; sys.path.insert(0, {str(AGENT.parents[3])!r}); "
        "import banger.guest.agent.server, banger.guest.agent.execution, banger.guest.agent.power; "
        "print(*sys.modules)"
    )
    done = asyncio.run(run([sys.executable, "-I", "-S", "-B", "-c", script], timeout=_DEADLINE))
    loaded = set(done.stdout.decode().split())
    assert not loaded & {"asyncio", "dataclasses", "enum", "json", "re", "signal", "socket", "subprocess", "threading"}
    assert {name for name in loaded if name.split(".")[0] == "banger"} <= {
        "banger", "banger.guest", "banger.guest.protocol", "banger.guest.agent",
        *(f"banger.guest.agent.{path.stem}" for path in AGENT.parent.glob("*.py")),
    }  # fmt: skip


def test_json_of_our_own_means_the_same_as_the_standard_library() -> None:
    value = {"a": [1, -2.5, True, False, None, 'q"\\\n\u20ac\U0001f600'], "b": {}}
    assert json.loads(encode(value)) == value
    assert decode(b" " + json.dumps(value).encode() + b"\n") == value


def test_body_length_without_a_header_is_nothing() -> None:
    assert http1.body_length({}) == 0
