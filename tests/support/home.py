"""A person's banger in directories of its own: commands run as a user runs them, and nothing may be left at the end."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import psutil

from tests.support import leaks

BIN = Path(sys.executable).parent
COMMAND_TIMEOUT_S = 300
PROOF = "accelerators.json"
# what the first daemon of this run found out with guests of its own: later homes need not boot them again
_proven: dict[str, bytes] = {}


class Home:
    """Fresh state, runtime and cache directories.

    `images` is a directory to use as the image store, `prefix` a command that runs every banger, such as
    `ip netns exec NAME`.
    """

    def __init__(self, *, images: Path | None = None, settings: str = "", prefix: tuple[str, ...] = ()) -> None:
        self._command = (*prefix, str(BIN / "banger"))
        # short, for the sake of socket paths
        self.root = Path(tempfile.mkdtemp(prefix=leaks.prefix()))
        self.env = {
            **os.environ,
            "BANGER_STATE_DIR": str(self.root / "state"),
            "BANGER_RUNTIME_DIR": str(self.root / "run"),
            "BANGER_CACHE_DIR": str(self.root / "cache"),
            "BANGER_CONFIG": str(self.root / "config.toml"),
        }
        (self.root / "config.toml").write_text(settings)
        if PROOF in _proven:
            (self.root / "cache").mkdir(mode=0o700)
            (self.root / "cache" / PROOF).write_bytes(_proven[PROOF])
        if images is not None:
            (self.root / "state").mkdir(mode=0o700)
            (self.root / "state" / "images").symlink_to(images)
            # the images let in the key of the home where they were made
            shutil.copytree(images.resolve().parent / "ssh", self.root / "state" / "ssh")

    @property
    def runtime(self) -> Path:
        return self.root / "run"

    @property
    def state(self) -> Path:
        return self.root / "state"

    def start(self, *words: str, stdout: int = subprocess.PIPE) -> "subprocess.Popen[bytes]":
        """Start `banger WORDS...` without waiting."""
        return subprocess.Popen(
            [*self._command, *words], env=self.env, stdin=subprocess.DEVNULL, stdout=stdout, stderr=subprocess.PIPE
        )

    def run(
        self, *words: str, input: bytes | None = None, status: int | None = 0, timeout: float = COMMAND_TIMEOUT_S
    ) -> "subprocess.CompletedProcess[bytes]":
        """Run `banger WORDS...` to its end, and check its exit status unless `status` is None."""
        done = subprocess.run(
            [*self._command, *words],
            env=self.env,
            input=input,
            stdin=subprocess.DEVNULL if input is None else None,
            capture_output=True,
            timeout=timeout,
            check=False,
        )
        if status is not None:
            assert done.returncode == status, f"banger {' '.join(words)}: {done.returncode}\n{done.stderr.decode()}"
        return done

    def json(self, *words: str, status: int | None = 0) -> Any:
        """The one document that `banger WORDS... --json` prints."""
        return json.loads(self.run(*words, "--json", status=status).stdout)

    def error(self, *words: str, status: int) -> str:
        """The stderr of a command that must fail with this status: one error line and perhaps a hint, no traceback."""
        text = self.run(*words, status=status).stderr.decode()
        assert text.count("error: ") == 1, text
        assert "Traceback" not in text
        return text

    def processes(self) -> list[psutil.Process]:
        """Every live process that belongs to this home."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.status() != psutil.STATUS_ZOMBIE and self._ours(process):
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def _ours(self, process: psutil.Process) -> bool:
        runtime = str(self.runtime)
        return process.environ().get("BANGER_RUNTIME_DIR") == runtime or any(
            runtime in word for word in process.cmdline()
        )

    def daemon_pid(self) -> int:
        return int(self.json("daemon", "status")["pid"])

    def kill_daemon(self) -> None:
        """As the kernel's OOM killer would."""
        process = psutil.Process(self.daemon_pid())
        process.send_signal(signal.SIGKILL)
        process.wait(10)

    def _keep_proof(self) -> None:
        proof = self.root / "cache" / PROOF
        if proof.exists() and b"pretended" not in proof.read_bytes():
            _proven.setdefault(PROOF, proof.read_bytes())

    def close(self) -> None:
        """Delete every VM, stop the daemon, and fail if a process is left."""
        try:
            if (self.runtime / "api.sock").exists():
                names = self.run("vm", "list", "--quiet", status=None).stdout.decode().split()
                if names:
                    self.run("vm", "delete", "--yes", *names, status=None)
                self.run("daemon", "stop", status=None)
            left = self.processes()
            told = [" ".join(process.cmdline()) for process in left]
            for process in left:
                process.kill()
            psutil.wait_procs(left, 10)
            assert not told, f"left running: {told}"
            assert not list((self.runtime / "vms").glob("*")), "runtime files of VMs were left"
            self._keep_proof()
        finally:
            shutil.rmtree(self.root)
