"""Run as a program: do something to a volume again and again, each time killed at a later step, and sweep after it.

`killed.py ACTION DIRECTORY` kills at every step; with numbers behind, the action at the first of them and then the
sweep at the second, pair by pair. It prints how often it killed, and fails when a disk is lost, doubled or half.
"""

import asyncio
import itertools
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from banger.model.volume import Volume
from banger.paths import Paths
from banger.storage import volumes

# the steps: whatever touches a directory or opens a file
STEPS = ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.scandir", "os.listdir")
FACTS = Volume(name="demo", image="debian", vm="demo", created_at="2026-01-02T03:04:05+00:00")
CONTENT = os.urandom(5000)


def killed(action: Callable[[], object], at: int) -> bool:
    """Whether a process that does this was killed, by itself, before its step number `at`."""
    child = os.fork()
    if child == 0:
        seen = itertools.count(1)

        def step(event: str, _: tuple[Any, ...]) -> None:
            if event in STEPS and next(seen) == at:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(step)
        code = 1
        try:
            action()
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    assert code in (0, -signal.SIGKILL), code
    return code != 0


class Place:
    """Directories with one disk, a VM's or a volume's."""

    def __init__(self, root: Path, action: str) -> None:
        shutil.rmtree(root, ignore_errors=True)
        self.action = action
        self.paths = Paths(root / "s", root / "r", root / "c")
        self.disk = self.paths.vm("0123456789ab").work_disk
        self.disk.parent.mkdir(parents=True)
        self.disk.write_bytes(CONTENT)
        if action != "keep":
            volumes.keep(self.paths, self.disk, FACTS)

    def act(self) -> None:
        if self.action == "keep":
            volumes.keep(self.paths, self.disk, FACTS)
        elif self.action == "take":
            volumes.take(self.paths, "demo", self.disk)
        else:
            asyncio.run(volumes.delete(self.paths, "demo"))

    def sweep(self) -> None:
        asyncio.run(volumes.sweep(self.paths))

    def check(self, *, done: bool) -> None:
        found = volumes.list_volumes(self.paths)
        assert found in ([], [FACTS]), found
        left = sorted(path.name for path in self.paths.volumes.glob("*")) if self.paths.volumes.exists() else []
        assert left == [volume.name for volume in found], left
        holders = [path for path in (self.disk, self.paths.volume("demo").disk) if path.exists()]
        assert len(holders) == 1 or (self.action == "delete" and not holders), holders
        assert all(path.read_bytes() == CONTENT for path in holders)
        if done:
            wanted = {"keep": [self.paths.volume("demo").disk], "take": [self.disk], "delete": []}
            assert holders == wanted[self.action], holders


def everywhere(root: Path, action: str) -> int:
    for step in itertools.count(1):
        place = Place(root, action)
        alive = not killed(place.act, step)
        place.sweep()
        place.check(done=alive)
        place.sweep()
        place.check(done=alive)
        if alive:
            return step - 1
    raise AssertionError


def also_sweeping(root: Path, action: str, pairs: list[tuple[int, int]]) -> int:
    kills = 0
    for step, then in pairs:
        place = Place(root, action)
        kills += killed(place.act, step) + killed(place.sweep, then)
        place.sweep()
        place.check(done=False)
    return kills


def main() -> None:
    action, root, numbers = sys.argv[1], Path(sys.argv[2]), [int(word) for word in sys.argv[3:]]
    pairs = list(zip(numbers[::2], numbers[1::2], strict=True))
    print(also_sweeping(root, action, pairs) if pairs else everywhere(root, action))


if __name__ == "__main__":
    main()
