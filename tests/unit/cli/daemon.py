"""A daemon that knows what a test tells it: for commands that need a running VM, without one."""

import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from banger import __version__
from banger.model.documents import VmDocument
from tests.unit.client import fake

BANGER = str(Path(sys.executable).parent / "banger")
LIMIT_S = 30.0


class Daemon:
    """`answers` maps a path of the API to the document that a GET of it gives; any other is not found."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.answers: dict[str, object] = {}
        self.env = {
            **os.environ,
            "BANGER_STATE_DIR": str(root / "state"),
            "BANGER_RUNTIME_DIR": str(root / "run"),
            "BANGER_CACHE_DIR": str(root / "cache"),
            "BANGER_CONFIG": str(root / "config.toml"),
        }

    def serve(self, stream: socket.socket) -> None:
        path = fake.read_until(stream, b"\r\n\r\n").decode().split(" ")[1].partition("?")[0]
        error = {"error": {"code": "not_found", "message": "there is no such VM", "hint": "banger vm list"}}
        found = path in self.answers
        body = json.dumps(self.answers[path] if found else error).encode()
        status = "200 OK" if found else "404 Not Found"
        head = f"HTTP/1.0 {status}\r\nContent-Length: {len(body)}\r\nx-banger-version: {__version__}\r\n\r\n"
        stream.sendall(head.encode() + body)

    def tell(self, vm: VmDocument) -> None:
        for reference in (vm["name"], vm["id"]):
            self.answers[f"/vms/{reference}"] = vm
        state = self.root / "state"
        (state / "vms" / vm["id"]).mkdir(parents=True, exist_ok=True)
        (state / "ssh").mkdir(exist_ok=True)
        (state / "ssh" / "id_ed25519").touch(0o600)

    def health(self, status: str, *failed: dict[str, object]) -> None:
        fine = {"name": "engine", "ok": True, "detail": "qemu"}
        self.answers["/vms/0123456789ab/health"] = {
            "name": "demo",
            "status": status,
            "checked_at": 1.0,
            "checks": [fine, *failed],
        }

    def run(
        self, *words: str, input: bytes = b"", env: Mapping[str, str] | None = None
    ) -> "subprocess.CompletedProcess[bytes]":
        return subprocess.run(
            [BANGER, *words],
            env={**self.env, **(env or {})},
            input=input,
            capture_output=True,
            timeout=LIMIT_S,
            check=False,
        )

    def start(self, *words: str) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(
            [BANGER, *words],
            env=self.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )


@contextlib.contextmanager
def daemon(folder: Path) -> Iterator[Daemon]:
    made = Daemon(folder)
    (folder / "run").mkdir()
    with fake.listening(folder / "run" / "api.sock", made.serve):
        yield made
