"""Daemons that are killed at a chosen point: `python -m tests.support.crash_daemon DIRECTORY`.

Importing a daemon takes longer than anything that is tried with it, so this process does that once, and forks one for
each line on its stdin. Each is the real daemon, whose engine is crash_engine.py, and which counts what it does while
it works on a command: stored events, changes of files and records, programs. DIRECTORY/plan, read when a request that
changes something comes in, chooses the point where it, or a program, ends by SIGKILL; DIRECTORY/fired tells of it.
"""

import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import uvicorn

import banger.daemon
import banger.engine.installed
import banger.engine.select
import banger.system.process as process
from banger.api.app import create_app
from banger.api.services import Services
from banger.config import load_settings
from banger.jobs.operations import Operations
from banger.model.operation import EventKind
from banger.paths import default_paths
from banger.store.operations import OperationStore
from banger.store.vms import VmStore

ENGINE = Path(__file__).with_name("crash_engine.py")
TOOLS = frozenset({"qemu-img", "mke2fs", "resize2fs", "tune2fs", "e2fsck", "debugfs", "dumpe2fs"})
LATE_S = 0.3  # how long after the daemon's end a late program begins
_CHANGES = frozenset(
    {
        "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "os.link", "os.symlink", "os.chmod", "open",
        "subprocess.Popen", "socket.bind", "socket.connect", "fcntl.ioctl",
    }
)  # fmt: skip
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class Plan(msgspec.Struct, frozen=True):
    """Where to crash; `at` empty: nowhere, count only.

    at        event: after that stored event. step: before that change of a file, a record or a connection. delay:
              after `delay_ms`. tool: at that program
    phase     of a tool: before, middle (after `delay_ms`), after; late: it begins when the daemon is long gone
    victim    daemon, tool or both
    """

    at: str = ""
    number: int = 0
    phase: str = ""
    victim: str = "daemon"
    delay_ms: float = 0.0


def _replace(place: object, name: str, thing: object) -> None:
    assert hasattr(place, name), f"{place} has no {name}"
    setattr(place, name, thing)


class Crashes:
    """Counts, and kills."""

    def __init__(self, directory: Path, app: Any, services: Services) -> None:
        self._directory, self._app, self._services = directory, app, services
        self._root = str(directory.parent)
        self._plan = Plan()
        self._armed = False
        self._counts = dict.fromkeys(("event", "step", "tool"), 0)

    def arm(self, plan: Plan) -> None:
        self._plan, self._armed = plan, True
        if plan.at == "delay":
            self._later(lambda: self.kill(f"after {plan.delay_ms:.0f} ms"), plan.delay_ms)

    def disarm(self) -> None:
        if self._armed:
            self._armed = False
            (self._directory / "counts").write_text(json.dumps(self._counts))

    def arm_as_planned(self) -> None:
        plan = self._directory / "plan"
        if plan.exists():
            found = msgspec.json.decode(plan.read_bytes(), type=Plan)
            plan.unlink()
            self.arm(found)

    def passed(self, kind: str, what: str) -> None:
        """One more of a kind; perhaps the last."""
        if self._armed:
            self._counts[kind] += 1
            if self._plan.at == kind and self._plan.number == self._counts[kind]:
                self.kill(f"{kind} {self._counts[kind]}, {what}")

    def kill(self, where: str) -> None:
        if self._armed:
            self.tell(f"daemon at {where}")
            os.kill(os.getpid(), signal.SIGKILL)

    def tell(self, text: str) -> None:
        with (self._directory / "fired").open("a") as file:
            file.write(f"{text}\n")

    @staticmethod
    def _later(action: Callable[[], None], delay_ms: float) -> None:
        def wait() -> None:
            time.sleep(delay_ms / 1000)
            action()

        threading.Thread(target=wait, daemon=True).start()

    def audit(self, event: str, words: tuple[Any, ...]) -> None:
        """A hook of sys.addaudithook: hears of what Python is about to do."""
        if self._armed and event in _CHANGES and self._ours(event, words):
            self.passed("step", f"{event} {words[0]}"[:300])

    def _ours(self, event: str, words: tuple[Any, ...]) -> bool:
        if event == "open" and not (isinstance(words[2], int) and words[2] & _WRITES):
            return False
        if event in ("subprocess.Popen", "fcntl.ioctl"):
            return True
        name = words[1] if event.startswith("socket") else words[0]
        if not isinstance(name, str | bytes | os.PathLike):
            return False
        path = os.fsdecode(os.fspath(name))
        # what is no whole path is below a directory's descriptor, as shutil.rmtree has it
        return (path.startswith(self._root) or not path.startswith("/")) and str(self._directory) not in path

    async def spawn(self, argv: Sequence[str], **options: Any) -> Any:
        """In the place of `process.spawn`, by which every program but an engine is started."""
        name = next((name for word in argv if (name := word.rpartition("/")[2]) in TOOLS), "")
        if not name or not self._armed:
            return await self._spawn(argv, **options)
        self._counts["tool"] += 1
        if self._plan.at != "tool" or self._plan.number != self._counts["tool"]:
            return await self._spawn(argv, **options)
        where = f"program {self._plan.number}, {name}, {self._plan.phase}"
        if self._plan.phase == "before" and self._plan.victim != "tool":
            self.kill(where)
        child = await self._spawn(self._doomed(argv), **options)
        if self._plan.victim == "tool":
            self.tell(f"tool at {where}")
        if self._plan.phase == "late":
            self.kill(where)
        elif self._plan.phase == "middle":
            self._later(lambda: self._end(child.pid, where), self._plan.delay_ms)
        elif self._plan.victim != "tool":
            threading.Thread(target=self._when_ended, args=(child.pid, where), daemon=True).start()
        return child

    def _doomed(self, argv: Sequence[str]) -> Sequence[str]:
        kills = self._plan.victim != "daemon"
        scripts = {
            "before": "kill -9 $$",
            "after": '"$@"; kill -9 $$' if kills else 'exec "$@"',
            "late": f'sleep {LATE_S}; exec "$@"',
        }
        script = scripts.get(self._plan.phase)
        return argv if script is None else ["/bin/sh", "-c", script, "sh", *argv]

    def _end(self, pid: int, where: str) -> None:
        if self._plan.victim != "daemon":
            try:
                os.killpg(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass  # it was quick
        if self._plan.victim != "tool":
            self.kill(where)

    def _when_ended(self, pid: int, where: str) -> None:
        try:
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        except ChildProcessError:
            pass  # the daemon was quicker to hear of it
        self.kill(where)

    def install(self) -> None:
        self._spawn: Callable[..., Awaitable[Any]] = process.spawn
        for module in [module for name, module in sys.modules.items() if name.startswith("banger.")]:
            if getattr(module, "spawn", None) is self._spawn:
                _replace(module, "spawn", self.spawn)
        sys.addaudithook(self.audit)
        engine = (sys.executable, "-I", "-S", str(ENGINE), str(self._directory))
        for module in (banger.engine.select, banger.engine.installed):
            _replace(module, "vmm_program", lambda: engine)
        for store, names in ((VmStore, ("add", "update", "remove")), (OperationStore, ("add", "finish"))):
            for name in names:
                self._before(store, name)
        self._after_events()
        self._at_requests()

    def _before(self, kind: type, name: str) -> None:
        real = getattr(kind, name)

        def wrapped(*words: Any, **named: Any) -> Any:
            self.passed("step", f"{kind.__name__}.{name}")
            return real(*words, **named)

        _replace(kind, name, wrapped)

    def _after_events(self) -> None:
        real = Operations._emit

        def emit(operations: Operations, operation_id: str, kind: EventKind, data: dict[str, Any]) -> None:
            real(operations, operation_id, kind, data)
            self.passed("event", f"{kind} {data.get('stage', '')}")
            if kind is EventKind.END and not operations.running:
                self.disarm()

        _replace(Operations, "_emit", emit)

    def _at_requests(self) -> None:
        def create(services: Services) -> Any:
            vars(self._services).update(vars(services))
            self.disarm()  # what is left over from before has been settled

            async def serve(scope: Any, receive: Any, send: Any) -> None:
                if scope["type"] == "http" and scope["method"] != "GET":
                    self.arm_as_planned()
                await self._app(scope, receive, send)

            return serve

        _replace(banger.daemon, "create_app", create)


def _run(crashes: Crashes, directory: Path, at_start: Plan | None, ready: int) -> None:
    os.setsid()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    nothing = os.open(os.devnull, os.O_RDWR)
    log = os.open(directory / "daemon.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for descriptor, source in enumerate((nothing, log, log)):
        os.dup2(source, descriptor)
    (directory / "daemon").write_text(str(os.getpid()))
    crashes.install()
    if at_start is not None:
        crashes.arm(at_start)
    banger.daemon.run(default_paths(), load_settings(), ready=ready)


def _fork(crashes: Crashes, directory: Path, at_start: Plan | None) -> tuple[int, bool]:
    """The daemon's pid, and whether it serves; else it is dead."""
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.close(read_end)
            _run(crashes, directory, at_start, write_end)
            status = 0
        finally:
            if status:
                traceback.print_exc()
                sys.stderr.flush()
            os._exit(status)
    os.close(write_end)
    try:
        return pid, os.read(read_end, 16) != b""
    finally:
        os.close(read_end)


def main(directory: Path) -> None:
    # half of a daemon's start is the making of its application; this one gets its services when there are some
    services = Services.__new__(Services)
    app = create_app(services)
    uvicorn.Config(app, lifespan="off", ws="wsproto", log_config=None).load()
    crashes = Crashes(directory, app, services)
    # daemons are reaped by the kernel
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for line in sys.stdin:
        pid, serves = _fork(crashes, directory, msgspec.json.decode(line, type=Plan | None))
        print(json.dumps([pid, serves]), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
