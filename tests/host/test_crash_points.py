"""kill -9 at any point leaves the old state or the new one: fifty points, each chosen by the number of its test.

No machine is booted: the engine is tests/support/crash_engine.py, all else is real.
"""

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from random import Random
from typing import Any, NamedTuple

import msgspec
import pytest

from banger.client.api import Client
from banger.model.errors import Conflict, NotFound
from banger.model.operation import EventKind, Operation, OperationState
from banger.model.vm import VmChange
from tests.support.crash_daemon import Plan
from tests.support.crashes import MINE, NEW, NEWER, OLD, SPARE, CrashHome, Outcome, damage, small_vm

POINTS = int(os.environ.get("BANGER_TEST_CRASH_POINTS", "50"))
MIDDLE_MS = (0.3, 6.0)  # most programs take five milliseconds
DELAY_MAX_MS = 400.0

pytestmark = [
    pytest.mark.host,
    pytest.mark.skipif(os.geteuid() != 0, reason="as root only, like all of this level"),
    pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-utils is not installed"),
]


class Command(NamedTuple):
    """What is interrupted. `sizes` and `images`: what the VM `mine` may have afterwards.

    `running`: it runs before. `damaged`: its work disk is, before, and may still be afterwards. `deletes`: what must
    be kept may be gone with the VM or volume that it lies in.
    """

    name: str
    give: Callable[[Client], Operation]
    running: bool = False
    sizes: tuple[int, ...] = (OLD,)
    images: tuple[str, ...] = ("small",)
    deletes: bytes = b""
    damaged: bool = False


def _create(**changes: Any) -> Callable[[Client], Operation]:
    return lambda client: client.create_vm(small_vm("new", **{"work_disk_bytes": NEW, **changes}))


def _grow(client: Client) -> Operation:
    return client.set_vm("mine", VmChange(work_disk_bytes=NEW))


def _change_image(client: Client) -> Operation:
    return client.set_vm("mine", VmChange(image="other"))


def _change_both(client: Client) -> Operation:
    return client.set_vm("mine", VmChange(work_disk_bytes=NEWER, image="other"))


def _files(client: Client) -> dict[str, str]:
    """What the image `given` was registered of."""
    parts = client.show_image("given")["parts"]
    roles = {"rootfs": "root", "kernel": "bzimage", "initramfs": "initramfs"}
    return {name: parts[role]["file"] for name, role in roles.items()}


SET_IMAGE = Command("set --image", _change_image, images=("small", "other"))
START = Command("start", lambda client: client.change_vm("mine", "start"))
DELETE = Command("delete", lambda client: client.delete_vm("mine"), deletes=MINE)
KEEP = Command("delete --keep-work-disk", lambda client: client.delete_vm("mine", keep_work_disk=True))
COMMANDS = (
    Command("create", _create()),
    Command("create beside a VM that runs", _create(), running=True),
    Command("create of an older image", _create(image="older")),
    Command("create of an image for another key", _create(image="foreign")),
    Command("create --engine firecracker", _create(engine="firecracker")),
    Command("create --volume", _create(work_disk_bytes=None, volume="spare")),
    SET_IMAGE,
    Command("set --work-disk", _grow, sizes=(OLD, NEW)),
    Command("set --work-disk, running", _grow, running=True, sizes=(OLD, NEW)),
    Command("set both", _change_both, sizes=(OLD, NEWER), images=("small", "other")),
    START,
    START._replace(name="start with a damaged work disk", damaged=True),
    Command("restart --force", lambda client: client.change_vm("mine", "restart", force=True), running=True),
    Command("stop", lambda client: client.change_vm("mine", "stop", force=False), running=True),
    DELETE,
    DELETE._replace(name="delete, running", running=True),
    KEEP,
    KEEP._replace(name="delete --keep-work-disk, running", running=True),
    Command("volume attach", lambda client: client.attach_volume("spare", "bare")),
    Command("volume delete", lambda client: client.delete_volume("spare"), deletes=SPARE),
    Command("image rename", lambda client: client.rename_image("parent", "renamed")),
    Command("image delete", lambda client: client.delete_image("foreign")),
    Command("image prune", lambda client: client.prune_images(everything=True)),
    Command("image register", lambda client: client.register_image({"name": "fresh", **_files(client)})),
    Command("image promote", lambda client: client.promote_image("given", None)),
    Command("image promote --as", lambda client: client.promote_image("given", "copied")),
    Command("check", lambda client: client.check_vm("mine")),
)


class Counts(NamedTuple):
    """How much there is to interrupt in a command."""

    event: int
    step: int
    tool: int
    request: int
    milliseconds: float


class Point(NamedTuple):
    """Where it crashes: a plan for the daemon, or the engine's end at a request; `again`: the next daemon as well."""

    command: Command
    plan: Plan
    request: int = 0
    victims: str = ""
    again: Plan | None = None


def choose(number: int, command: Command, counts: Counts) -> Point:
    random = Random(number)
    kinds = ["event", "step", "step", "delay"]
    kinds += ["request"] * 2 if counts.request else []
    kinds += ["tool"] * 4 if counts.tool else []
    kind, again = random.choice(kinds), None
    if random.random() < 0.3:
        again = Plan(at="step", number=random.randint(1, 20))
    if kind == "request":
        # the last request may be one that is made after the operation's end
        return Point(command, Plan(), random.randint(1, counts.request), random.choice(("engine", "both")), again)
    if kind == "delay":
        return Point(
            command, Plan(at="delay", delay_ms=random.uniform(0, min(DELAY_MAX_MS, counts.milliseconds))), again=again
        )
    if kind == "tool":
        victim = random.choice(("daemon", "tool", "both"))
        phase = random.choice({"daemon": ("before", "middle", "after", "late")}.get(victim, ("middle", "after")))
        delay = random.uniform(*MIDDLE_MS)
        plan = Plan(kind, random.randint(1, counts.tool), phase, victim, delay)
    else:
        plan = Plan(kind, random.randint(1, counts.event if kind == "event" else counts.step))
    return Point(command, plan, again=again)


class Scene:
    """One home for all points."""

    def __init__(self) -> None:
        self.home = CrashHome()
        self.reached: list[bool] = []
        self._counts: dict[str, Counts] = {}

    def counts(self, command: Command) -> Counts:
        """From a rehearsal, in which nothing crashes and everything must hold as well."""
        if command.name not in self._counts:
            self._prepare(command)
            self._plan(Plan())
            begun = time.monotonic()
            self.home.done(lambda: command.give(self.home.client))
            milliseconds = (time.monotonic() - begun) * 1000
            self.home.check()
            counted = json.loads((self.home.notes / "counts").read_text())
            requests = len(self.home.note("requests"))
            self._counts[command.name] = Counts(**counted, request=requests, milliseconds=milliseconds)
        return self._counts[command.name]

    def _prepare(self, command: Command) -> None:
        self.home.reset()
        self.home.start_daemon()
        if command.running:
            self.home.done(lambda: self.home.client.change_vm("mine", "start"))
            (self.home.notes / "requests").unlink()
        if command.damaged:
            damage(self.home.paths.vm(self.home.client.show_vm("mine")["id"]).work_disk)

    def _plan(self, plan: Plan) -> None:
        (self.home.notes / "plan").write_bytes(msgspec.json.encode(plan))

    def play(self, point: Point) -> None:
        self._prepare(point.command)
        self._plan(point.plan)
        if point.request:
            (self.home.notes / "engine").write_text(f"{point.request} {point.victims}")
        outcome = self.home.give(lambda: point.command.give(self.home.client))
        self.reached.append(bool(self.home.note("fired")))
        for name in ("plan", "engine"):
            (self.home.notes / name).unlink(missing_ok=True)
        if not outcome.lost:
            # the daemon has seen it through, whatever came of it
            self._check(point.command)
            self.home.crash_daemon()
        if not self.home.start_daemon(point.again):
            self.home.start_daemon()
        self._check_told(outcome)
        self._check(point.command, fresh=True)
        self._finish(point.command)

    def _check_told(self, outcome: Outcome) -> None:
        """What the daemon did not live to see is told as interrupted, and everybody who follows it hears of its end."""
        if not outcome.begun:
            return
        operation = self.home.client.show_operation(outcome.begun)
        *_, last = self.home.client.follow(outcome.begun)
        assert (last.kind, last.data["state"]) == (EventKind.END, operation.state)
        if outcome.operation is not None:
            assert operation.state is outcome.operation.state
        assert operation.state is OperationState.DONE or operation.error, operation
        if operation.state is OperationState.INTERRUPTED:
            assert outcome.operation is None
            assert operation.error is not None
            assert operation.error["hint"]

    def _check(self, command: Command, *, fresh: bool = False) -> None:
        """Old or new, and what must not be lost in exactly one place."""
        found = self.home.check(fresh=fresh, damaged=command.damaged)
        wanted = {MINE, SPARE} - ({command.deletes} if command.deletes and command.deletes not in found.kept else set())
        assert sorted(found.kept) == sorted(wanted)
        assert set(found.volumes) <= {"mine", "spare"}
        assert "bare" in found.vms
        if "mine" in found.vms:
            assert found.vms["mine"]["work_disk_bytes"] in command.sizes
            assert found.vms["mine"]["image"] in command.images
            assert "mine" not in found.volumes
        else:
            assert command.deletes == MINE or "mine" in found.volumes

    def _finish(self, command: Command) -> None:
        """The same command again succeeds, or says why not; in the end nothing is left."""
        outcome = self.home.give(lambda: command.give(self.home.client))
        if outcome.error is not None:
            assert isinstance(outcome.error, Conflict | NotFound), repr(outcome.error)
            assert outcome.error.hint
        else:
            assert outcome.operation is not None, outcome
            assert outcome.operation.state is OperationState.DONE, outcome.operation
        found = self.home.check()
        for name in found.vms:
            self.home.done(lambda name=name: self.home.client.delete_vm(name))  # type: ignore[misc]
        for name in found.volumes:
            self.home.done(lambda name=name: self.home.client.delete_volume(name))  # type: ignore[misc]
        assert self.home.check() == ({}, [], [])


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    scene = Scene()
    try:
        yield scene
    finally:
        scene.home.close()


def play(scene: Scene, point: Point) -> None:
    try:
        scene.play(point)
    except BaseException:
        print(f"{point}\nfired: {scene.home.note('fired')}")
        print((scene.home.notes / "daemon.log").read_text()[-4000:])
        raise


@pytest.mark.parametrize("number", range(POINTS))
def test_the_state_is_the_old_or_the_new_one(scene: Scene, number: int) -> None:
    command = COMMANDS[number % len(COMMANDS)]
    play(scene, choose(number, command, scene.counts(command)))


def test_nearly_all_points_were_reached(scene: Scene) -> None:
    """Else most of the above would be tests of what happens when nothing crashes."""
    if len(scene.reached) < POINTS:
        pytest.skip("not all of them were tried")
    assert sum(scene.reached) >= 0.8 * len(scene.reached)


def test_a_program_that_outlives_the_daemon_has_no_say_in_what_the_next_one_finds(scene: Scene) -> None:
    play(scene, Point(SET_IMAGE, Plan("tool", 1, "late")))
