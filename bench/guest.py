"""What the agent costs a boot, and what reaching into a guest costs: exec against ssh, vm cp and vm forward against the
raw vsock stream.
"""

import os
import socket
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support.engine import Engine
from tests.support.home import Home

EXECS, LOGINS, ROUNDS = 100, 20, 5
MIB = 128
RAW_PORT, TCP_PORT = 5000, 5001
SETTLE_S = 20
BOOT_S, BOOTED = 120, "Reached target multi-user.target"

# Sends or takes a stream on a vsock and on a TCP port: one byte from the host says which way.
_SERVER = f"""
import socket, threading
def serve(listener):
    while True:
        peer, _ = listener.accept()
        way = peer.recv(1)
        block, left = bytearray(1 << 18), {MIB} << 20
        if way == b"o":
            while left > 0:
                left -= peer.send(block)
        else:
            while left > 0 and (got := peer.recv_into(block)):
                left -= got
            peer.send(b"!")
        peer.close()
vsock = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
vsock.bind((socket.VMADDR_CID_ANY, {RAW_PORT}))
tcp = socket.create_server(("127.0.0.1", {TCP_PORT}))
vsock.listen(); tcp.listen()
threading.Thread(target=serve, args=(vsock,), daemon=True).start()
print("ready", flush=True)
serve(tcp)
"""


def measure(home: Home) -> dict[str, list[float]]:
    """Seconds of each boot, command and stream, what is compared taken in turn."""
    found = _boots((home.state / "images").resolve())
    home.run("vm", "create", "--name", "reach", "--no-opencode")
    time.sleep(SETTLE_S)  # the guest's own start-up work has ended
    home.run("vm", "ssh", "reach", "true")  # pins the host key
    found |= {"exec_true": [], "ssh_true": []}
    for number in range(EXECS):
        found["exec_true"].append(_seconds(lambda: home.run("vm", "exec", "reach", "true")))
        if number % (EXECS // LOGINS) == 0:
            found["ssh_true"].append(_seconds(lambda: home.run("vm", "ssh", "reach", "true")))
    return found | _streams(home)


def _boots(images: Path) -> dict[str, list[float]]:
    """Seconds from the start to the last target, with the agent and with its unit masked."""
    found: dict[str, list[float]] = {"boot_with_agent": [], "boot_without_agent": []}
    for _ in range(ROUNDS):
        found["boot_with_agent"].append(_boot(images, ""))
        found["boot_without_agent"].append(_boot(images, " systemd.mask=banger-agent.service"))
    return found


def _boot(images: Path, more: str) -> float:
    engine = Engine(images)
    try:
        engine.launch()
        source = engine.configuration()["boot-source"]
        engine.configure(**{"boot-source": source | {"boot_args": engine.boot_args + more}})
        begun = time.perf_counter()
        engine.start()
        engine.wait(lambda: BOOTED in engine.console.read_text(errors="replace"), BOOT_S)
        return time.perf_counter() - begun
    finally:
        engine.close()


def _streams(home: Home) -> dict[str, list[float]]:
    vsock = home.json("vm", "show", "reach")["vsock_socket"]
    here, there = home.root / "block", "/var/tmp/block"
    here.write_bytes(os.urandom(MIB << 20))
    with _server(home), _forward(home) as port:
        asked: dict[str, Callable[[], object]] = {
            "raw_out": lambda: _take(_raw(vsock)),
            "forward_out": lambda: _take(socket.create_connection(("127.0.0.1", port))),
            "raw_in": lambda: _give(_raw(vsock)),
            "forward_in": lambda: _give(socket.create_connection(("127.0.0.1", port))),
            "cp_in": lambda: home.run("vm", "cp", "-q", str(here), f"reach:{there}"),
            "cp_out": lambda: home.run("vm", "cp", "-q", f"reach:{there}", str(home.root / "back")),
        }
        found: dict[str, list[float]] = {name: [] for name in asked}
        for _ in range(ROUNDS):
            for name, work in asked.items():
                found[name].append(_seconds(work))
    assert (home.root / "back").read_bytes() == here.read_bytes()
    return found


@contextmanager
def _server(home: Home) -> Iterator[None]:
    child = home.start("vm", "exec", "reach", "--", "python3", "-c", _SERVER)
    assert child.stdout is not None
    assert child.stdout.readline() == b"ready\n"
    try:
        yield
    finally:
        child.terminate()
        child.communicate(timeout=30)


@contextmanager
def _forward(home: Home) -> Iterator[int]:
    """The local port that leads to the guest's."""
    child = home.start("vm", "forward", "reach", f"0:{TCP_PORT}", stdout=subprocess.DEVNULL)
    assert child.stderr is not None
    try:
        line = child.stderr.readline().decode()
        yield int(line.split("127.0.0.1:")[1].split()[0])
    finally:
        child.terminate()
        child.communicate(timeout=30)


def _raw(vsock: str) -> socket.socket:
    stream = socket.socket(socket.AF_UNIX)
    stream.connect(vsock)
    stream.sendall(b"CONNECT %d\n" % RAW_PORT)
    while stream.recv(1) != b"\n":
        pass
    return stream


def _take(stream: socket.socket) -> None:
    with stream:
        stream.sendall(b"o")
        block, left = bytearray(1 << 18), MIB << 20
        while left > 0:
            got = stream.recv_into(block)
            assert got, "the stream ended early"
            left -= got


def _give(stream: socket.socket) -> None:
    with stream:
        stream.sendall(b"i" + bytes(MIB << 20))
        assert stream.recv(1) == b"!"


def _seconds(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def table(found: dict[str, Any]) -> str:
    middle = {name: statistics.median(values) for name, values in found.items()}
    last = {name: statistics.quantiles(values, n=100)[98] for name, values in found.items()}
    rows = [
        ("boot to multi-user, with the agent", f"{middle['boot_with_agent']:.2f} s"),
        ("the same, with the agent's unit masked", f"{middle['boot_without_agent']:.2f} s"),
        ("`vm exec NAME true`, median", f"{middle['exec_true'] * 1e3:.0f} ms"),
        ("the same, 99th percentile", f"{last['exec_true'] * 1e3:.0f} ms"),
        ("`vm ssh NAME true`, median", f"{middle['ssh_true'] * 1e3:.0f} ms"),
        ("the same, 99th percentile", f"{last['ssh_true'] * 1e3:.0f} ms"),
        ("ratio of the medians", f"{middle['ssh_true'] / middle['exec_true']:.1f}"),
    ]
    for way, words in (("out", "out of the guest"), ("in", "into the guest")):
        raw = middle[f"raw_{way}"]
        rows.append((f"raw vsock stream {words}", f"{MIB / raw:.0f} MiB/s"))
        for kind in ("forward", "cp"):
            seconds = middle[f"{kind}_{way}"]
            shown = f"{MIB / seconds:.0f} MiB/s, {raw / seconds:.2f}"
            rows.append((f"`vm {kind}` {words}, and its part of the raw stream", shown))
    return "\n".join(["| what | |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in rows)])
