"""`banger verify`: everything once, by the commands that a person would type, with a VM made for it."""

import argparse
import asyncio
import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from banger.cli.connect import client
from banger.cli.render import duration, print_json
from banger.client.api import Client
from banger.model.errors import BangerError, CommandFailed, Invalid, NotFound, Timeout
from banger.model.names import new_id
from banger.paths import default_paths
from banger.system.process import run

COMMAND_S = 60.0
MARK = "/root/.banger-verify"


class VerifyFailed(BangerError):
    """A step did not do what it should."""

    code = "verify_failed"


@dataclass
class Verification:
    """One run: the VM it makes, the time that its waits for boots have left together, and what each step took."""

    image: dict[str, Any]
    deadline: float
    quiet: bool
    name: str = field(default_factory=lambda: f"verify-{new_id()[:6]}")
    vm_id: str = ""
    steps: list[dict[str, Any]] = field(default_factory=list)

    def banger(self, *words: str, boots: bool = False) -> str:
        """What a command prints. Raises `CommandFailed`, `Timeout`."""
        left = self.deadline - time.monotonic() if boots else COMMAND_S
        if left <= 0:
            raise Timeout("the time for boots is used up", hint="`banger verify --timeout S` gives more")
        done = asyncio.run(run([sys.executable, "-m", "banger", *words], timeout=left, check=False))
        if done.status != 0:
            told = done.stderr.decode(errors="replace").strip()
            line = next((line for line in told.splitlines() if line.startswith("error: ")), told[-300:])
            raise CommandFailed(f"`banger {' '.join(words)}` exited with status {done.status}: {line}")
        return done.stdout.decode(errors="replace").strip()

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[None]:
        """A timed step, told on stderr. Raises `VerifyFailed` naming it."""
        begun = time.monotonic()
        problem = ""
        try:
            yield
        except BangerError as error:
            problem = error.message
            raise VerifyFailed(f"{name}: {problem}", hint=error.hint) from error
        finally:
            took = time.monotonic() - begun
            ok = not problem and sys.exc_info()[0] is None
            self.steps.append({"step": name, "seconds": round(took, 2), "ok": ok, "problem": problem})
            if not self.quiet:
                print(f"{name:<24} {duration(took):>9}  {'ok' if ok else 'failed'}", file=sys.stderr, flush=True)


def run_verify(arguments: argparse.Namespace) -> int:
    """Run every step; on failure write a report, then delete the VM. Raises `VerifyFailed`."""
    if arguments.timeout <= 0:
        raise Invalid("--timeout is not above 0", hint="give it in seconds")
    connection = client()
    it = Verification(connection.show_image(arguments.image), time.monotonic() + arguments.timeout, arguments.json)
    try:
        for step in (_create, _settle, _use, _log_in, _ports, _again, _delete):
            step(it)
    except VerifyFailed as failure:
        raise _reported(connection, it, failure) from failure
    finally:
        if not (arguments.keep and any(not step["ok"] for step in it.steps)):
            _clean_up(connection, it.name)
    if arguments.json:
        print_json({"image": arguments.image, "vm": it.name, "ok": True, "steps": it.steps})
    else:
        print(f"the image {arguments.image} works: {len(it.steps)} steps in {_total(it)}")
    return 0


def _total(done: Verification) -> str:
    return duration(sum(step["seconds"] for step in done.steps))


def _create(it: Verification) -> None:
    with it.step("create"):
        vm = json.loads(it.banger("vm", "create", it.name, "--image", it.image["name"], "--json", boots=True))
        it.vm_id = vm["id"]
        _expect("state", vm["state"], "running")


def _settle(it: Verification) -> None:
    """Before anything logs in, the daemon must have seen every service run."""
    with it.step("health"):
        left = max(1, int(it.deadline - time.monotonic()))
        health = json.loads(it.banger("vm", "health", it.name, "--wait", str(min(left, 600)), "--json", boots=True))
        waiting = [check["name"] for check in health["checks"] if check["starting"]]
        _expect("what is still starting", waiting, [])


def _use(it: Verification) -> None:
    with it.step("exec"):
        _expect("the kernel", it.banger("vm", "exec", it.name, "--", "uname", "-r"), it.image["kernel_release"])
    with it.step("write to /root"):
        it.banger("vm", "exec", it.name, "--", "sh", "-c", f"echo {it.name} > {MARK} && sync")


def _log_in(it: Verification) -> None:
    with it.step("ssh"):
        _expect("what ssh printed", it.banger("vm", "ssh", it.name, "echo", "reached"), "reached")


def _ports(it: Verification) -> None:
    wanted = {22, 4096} if it.image["has_opencode"] else {22}
    with it.step("ports"):
        listening = {port["port"] for port in json.loads(it.banger("vm", "ports", it.name, "--json"))}
        _expect("ports that do not listen", sorted(wanted - listening), [])


def _again(it: Verification) -> None:
    with it.step("stop"):
        it.banger("vm", "stop", it.name)
    with it.step("start"):
        it.banger("vm", "start", it.name, boots=True)
    with it.step("/root is kept"):
        _expect(MARK, it.banger("vm", "exec", it.name, "--", "cat", MARK), it.name)


def _delete(it: Verification) -> None:
    with it.step("delete"):
        it.banger("vm", "delete", it.name, "--yes")
    with it.step("nothing is left"):
        _expect("what is left", _left(it.vm_id), [])


def _left(vm_id: str) -> list[str]:
    """Files, processes and network links of a VM."""
    paths = default_paths().vm(vm_id)
    left = [str(path) for path in paths if path.exists() or path.is_symlink()]
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                if vm_id.encode() in (entry / "cmdline").read_bytes():
                    left.append(f"process {entry.name}")
    return left + [f"link {link.name}" for link in Path("/sys/class/net").iterdir() if vm_id[:8] in link.name]


def _expect(what: str, seen: object, wanted: object) -> None:
    if seen != wanted:
        raise VerifyFailed(f"{what}: {seen!r} instead of {wanted!r}")


def _reported(connection: Client, it: Verification, failure: VerifyFailed) -> VerifyFailed:
    """The failure with a report's path, and where to look first."""
    details = {"steps": it.steps, "vm": it.name}
    try:
        report = connection.report_vm(it.name)
    except BangerError as error:
        return VerifyFailed(failure.message, hint=f"no report was written: {error.message}", details=details)
    return VerifyFailed(
        failure.message,
        hint=f"all that is known is in {report.path}; look first at {report.look}",
        details={**details, "report": report.path, "look": report.look},
    )


def _clean_up(connection: Client, name: str) -> None:
    """End what still runs for the VM, and delete it."""
    for operation in connection.list_operations():
        if operation.target == f"vm/{name}" and operation.state == "running":
            connection.cancel_operation(operation.id)
            _until_end(connection, operation.id)
    with contextlib.suppress(NotFound):
        _until_end(connection, connection.delete_vm(name).id)


def _until_end(connection: Client, operation_id: str) -> None:
    for _ in connection.follow(operation_id):
        pass
