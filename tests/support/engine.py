"""An engine driven by hand, without banger: one process, its API's socket, and the guest's agent behind it."""

import asyncio
import http.client
import json
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec
import psutil

from banger.guest.channel import Guest
from banger.model.errors import BangerError
from banger.model.guest import ExecRequest
from banger.model.image import Image
from tests.support import leaks

VMM = str(Path(sys.executable).parent / "banger-vmm")
HEALTHY_S = 90.0


class Panicked(Exception):
    """The guest's kernel gave up before the agent answered."""


class _Connection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=30)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(30)
        self.sock.connect(str(self._path))


class Engine:
    """One banger-vmm, or what `program` names, in a directory of its own, which only its owner may enter.

    Its root is an overlay, or `raw`, which every engine reads.
    """

    def __init__(self, images: Path, *, program: tuple[str, ...] = (VMM,), raw: bool = False) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix=leaks.prefix()))
        self.image = images / "debian"
        self.api = self.directory / "api.sock"
        self.vsock = self.directory / "v.sock"
        self.console = self.directory / "console.log"
        self.log = self.directory / "engine.log"
        self.root = self.directory / ("root.ext4" if raw else "root.qcow2")
        self.process: subprocess.Popen[bytes] | None = None
        base = self.image / "root.ext4"
        if raw:
            self._program, command = program, ["cp", "--reflink=auto", "--sparse=always", str(base), str(self.root)]
        else:
            self._program = (*program, "--backing-file", str(base))
            command = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", str(base), str(self.root)]
        subprocess.run(command, check=True)
        self.root.chmod(0o600)

    @property
    def boot_args(self) -> str:
        return msgspec.json.decode((self.image / "image.json").read_bytes(), type=Image).boot_args

    def disk(self, name: str, mib: int, start: bytes = b"") -> Path:
        """A raw file that only its owner may read."""
        path = self.directory / name
        with path.open("wb") as file:
            file.write(start)
            file.truncate(mib << 20)
        path.chmod(0o600)
        return path

    def launch(self, *words: str, api: bool = True) -> psutil.Process:
        """Start the process; with an API, wait until it answers."""
        command = [*self._program, *words]
        if api:
            command += ["--api-sock", str(self.api)]
        with self.console.open("ab") as console, self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=console, stderr=log, cwd=self.directory
            )
        if api:
            self.wait(self._listens, 20)
        return psutil.Process(self.process.pid)

    def _listens(self) -> bool:
        """The file alone does not say so: it is there a moment before."""
        with socket.socket(socket.AF_UNIX) as stream:
            return stream.connect_ex(str(self.api)) == 0

    def ask(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        connection = _Connection(self.api)
        try:
            connection.request(method, path, None if body is None else json.dumps(body))
            reply = connection.getresponse()
            data = reply.read()
            return reply.status, json.loads(data) if data else None
        finally:
            connection.close()

    def must(self, method: str, path: str, body: Any) -> None:
        status, reply = self.ask(method, path, body)
        assert status == 204, reply

    def configuration(self) -> dict[str, Any]:
        """A whole machine as --config-file takes it."""
        return {
            "machine-config": {"vcpu_count": 2, "mem_size_mib": 768},
            "boot-source": {
                "kernel_image_path": str(self.image / "vmlinux"),
                "initrd_path": str(self.image / "initramfs.cpio"),
                "boot_args": self.boot_args,
            },
            "drives": [{"drive_id": "root", "path_on_host": str(self.root), "is_root_device": True}],
            "vsock": {"guest_cid": 3, "uds_path": str(self.vsock)},
            "entropy": {},
        }

    def configure(self, **more: Any) -> None:
        """PUT a whole machine, part by part."""
        for part, body in (self.configuration() | more).items():
            if part == "drives":
                for drive in body:
                    self.must("PUT", f"/drives/{drive['drive_id']}", drive)
            else:
                self.must("PUT", f"/{part}", body)

    def start(self) -> None:
        self.must("PUT", "/actions", {"action_type": "InstanceStart"})

    def boot(self, *words: str, **more: Any) -> None:
        """Launch, configure, start, and wait until the guest is healthy.

        A kernel that panics while it boots under emulation, as happens once in many boots, is booted again.
        """
        for again in (True, True, False):
            self.launch(*words)
            self.configure(**more)
            self.start()
            try:
                self.until_healthy()
                return
            except Panicked:
                if not again:
                    raise
                self.api.unlink(missing_ok=True)

    def until_healthy(self) -> None:
        """Wait for the agent's answer. Raises `Panicked`, and AssertionError with the console's end."""
        asyncio.run(self._healthy())

    async def _healthy(self) -> None:
        assert self.process is not None
        deadline = time.monotonic() + HEALTHY_S
        while self.process.poll() is None and time.monotonic() < deadline:
            try:
                await Guest(self.vsock).health(timeout=5)
                return
            except BangerError:
                await asyncio.sleep(0.1)
        logs = [self.console, *self.directory.glob("serial.log")]
        said = "".join(path.read_text(errors="replace")[-3000:] for path in logs)
        if "Kernel panic" in said:
            self.process.wait(10)
            raise Panicked(said)
        raise AssertionError(f"the guest did not become healthy:\n{said}\n{self.log.read_text()[-1000:]}")

    def shell(self, script: str, *, status: int = 0) -> str:
        """What a shell script in the guest prints."""
        request = ExecRequest(argv=("sh", "-c", script), timeout_s=120)
        result = asyncio.run(Guest(self.vsock).run(request))
        assert result.exit.status == status, (script, result)
        return result.stdout.decode(errors="replace")

    def qemu(self) -> psutil.Process:
        assert self.process is not None
        (child,) = psutil.Process(self.process.pid).children()
        return child

    def wait(self, true: Any, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < deadline, self.log.read_text()[-2000:]
            time.sleep(0.01)

    def close(self) -> None:
        """End it, and fail if anything of it is left."""
        try:
            if self.process is not None:
                children = psutil.Process(self.process.pid).children() if self.process.poll() is None else []
                self.process.terminate()
                self.process.wait(10)
                _, alive = psutil.wait_procs(children, 2)
                assert not alive, f"left running: {alive}"
                # Firecracker leaves its sockets to whoever started it
                assert self._program[0] != VMM or not list(self.directory.glob("*.sock")), "sockets were left"
        finally:
            if self.process is not None and self.process.poll() is None:
                self.process.kill()
                self.process.wait()
            shutil.rmtree(self.directory)
