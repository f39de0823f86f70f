"""The executable from its start to its end, without a machine."""

import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

VMM = str(Path(sys.executable).parent / "banger-vmm")


# as firecracker-go-sdk starts the program `firecracker` when nothing else is said
SDK = ["--api-sock", "s", "--id", "0d9ef70a-6c5f-4b1a-9d1c-6f4f2a4f1e1b", "--no-seccomp"]


@pytest.mark.parametrize(
    ("words", "number"), [(["--api-sock", "s"], signal.SIGTERM), (["--api-sock", "s"], signal.SIGINT), (SDK, 15)]
)
def test_an_end_with_a_client_connected_is_quiet(tmp_path: Path, words: list[str], number: int) -> None:
    path, log, program = tmp_path / "s", tmp_path / "log", tmp_path / "firecracker"
    program.symlink_to(VMM)
    with log.open("wb") as output:
        process = subprocess.Popen([str(program), *words], cwd=tmp_path, stdin=subprocess.DEVNULL, stderr=output)
    try:
        deadline = time.monotonic() + 10
        while not path.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(10)
            client.connect(str(path))
            client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert client.recv(4096).startswith(b"HTTP/1.1 200")
            process.send_signal(number)
            assert process.wait(10) == 0
    finally:
        process.kill()
        process.wait()
    assert not path.exists()
    assert [line.split("] ", 1)[1] for line in log.read_text().splitlines()][1:] == ["GET / -> 200"]
