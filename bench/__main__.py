"""`make bench`: every figure of docs/performance.md, as medians in one run; JSON beside, tables on stdout.

`python -m bench engine` measures only banger-vmm itself, `guest` only the ways into a guest, `disks` only disks and
accounting (as root: it mounts), `images` only bootstraps, `spine` the rest.
BANGER_TEST_IMAGES names a directory with a bootstrapped `debian` image; without it one is built.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support.home import BIN, Home
from tests.support.leaks import mark_this_run

from bench import disks, engine, guest, images
from bench.byhand import boot_by_hand

ROUNDS = 5
RESULTS = Path(__file__).parent / "results"


def seconds(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def boots(home: Home, image: Path) -> dict[str, list[float]]:
    """Turn about, so that the machine's moods hit both alike; each VM is gone before the next boot."""
    boot_args = json.loads((image / "image.json").read_text())["boot_args"]
    found: dict[str, list[float]] = {"create": [], "by_hand": [], "fresh_disk_mib": [], "engine_pss_mib": []}
    home.run("vm", "list")
    for number in range(ROUNDS):
        name = f"b{number}"
        found["create"].append(seconds(lambda name=name: home.run("vm", "create", "--name", name)))  # type: ignore[misc]
        vm = home.json("vm", "show", name)
        found["fresh_disk_mib"].append(vm["disk_allocated_bytes"] / 2**20)
        found["engine_pss_mib"].append(engine.pss_mib(vm["engine_pid"]))
        home.run("vm", "delete", "--yes", name)
        found["by_hand"].append(boot_by_hand(image, boot_args, vm["accelerator"]))
    return found


def commands(home: Home) -> dict[str, list[float]]:
    """Wall time of commands, turn about with a bare interpreter, while one VM runs."""
    home.run("vm", "create", "--name", "one")
    time.sleep(20)  # the guest's own start-up work has ended
    bare = [str(BIN / "python"), "-c", "pass"]
    asked: dict[str, Callable[[], object]] = {
        "bare": lambda: subprocess.run(bare, check=True),
        "list": lambda: home.run("vm", "list"),
        "exec_true": lambda: home.run("vm", "exec", "one", "true"),
    }
    found: dict[str, list[float]] = {name: [] for name in asked}
    for _ in range(3 * ROUNDS):
        for name, work in asked.items():
            found[name].append(seconds(work))
    found["daemon_pss_mib"] = [engine.pss_mib(home.daemon_pid())]
    script = "head -c 104857600 /dev/zero"
    found["exec_100_mib"] = [seconds(lambda: home.run("vm", "exec", "one", "--", "sh", "-c", script)) for _ in range(3)]
    found["engine_pss_after_mib"] = [engine.pss_mib(home.json("vm", "show", "one")["engine_pid"])]
    return found


def table(found: dict[str, list[float]]) -> str:
    middle = {name: statistics.median(values) for name, values in found.items()}
    rows = [
        ("`vm create`, from the command to healthy", f"{middle['create']:.2f} s"),
        ("the same QEMU started by hand, to the same answer", f"{middle['by_hand']:.2f} s"),
        ("ratio (aim: at most 1.10)", f"{middle['create'] / middle['by_hand']:.3f}"),
        ("a bare interpreter start", f"{middle['bare'] * 1e3:.1f} ms"),
        ("`vm list`, one VM running", f"{middle['list'] * 1e3:.1f} ms"),
        ("ratio (aim: under 6)", f"{middle['list'] / middle['bare']:.2f}"),
        ("`vm exec NAME true`", f"{middle['exec_true'] * 1e3:.0f} ms"),
        ("100 MiB out of `vm exec`", f"{100 / middle['exec_100_mib']:.0f} MiB/s"),
        ("memory of the daemon (PSS)", f"{middle['daemon_pss_mib']:.1f} MiB"),
        ("memory of one engine process without QEMU (PSS; aim: under 20)", f"{middle['engine_pss_mib']:.1f} MiB"),
        ("the same after 300 MiB of exec output", f"{middle['engine_pss_after_mib']:.1f} MiB"),
        ("disk of a fresh VM (aim: under 2)", f"{middle['fresh_disk_mib']:.2f} MiB"),
    ]
    return "\n".join(["| what | median |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in rows)])


def spine(home: Home) -> tuple[dict[str, Any], str]:
    image = (home.state / "images" / "debian").resolve()
    found = boots(home, image) | commands(home)
    return found, table(found)


def of_engine(home: Home) -> tuple[dict[str, Any], str]:
    found = engine.measure((home.state / "images").resolve())
    return found, engine.table(found)


def of_guest(home: Home) -> tuple[dict[str, Any], str]:
    found = guest.measure(home)
    return found, guest.table(found)


def of_disks(_: Home) -> tuple[dict[str, Any], str]:
    found = disks.measure()
    return found, disks.table(found)


def of_images(_: Home) -> tuple[dict[str, Any], str]:
    found = images.measure()
    return found, images.table(found)


MEASURES = {"spine": spine, "engine": of_engine, "guest": of_guest, "disks": of_disks, "images": of_images}
NEED_NO_IMAGE = {"disks", "images"}


def main(parts: list[str]) -> int:
    if unknown := set(parts) - set(MEASURES):
        print(f"not measured here: {', '.join(sorted(unknown))}; there is: {', '.join(MEASURES)}", file=sys.stderr)
        return 2
    mark_this_run()
    with engine.compiled():
        measure(parts or list(MEASURES))
    return 0


def measure(parts: list[str]) -> None:
    given = os.environ.get("BANGER_TEST_IMAGES")
    home = Home(images=Path(given) if given else None)
    try:
        if not given and not set(parts) <= NEED_NO_IMAGE:
            home.run("image", "bootstrap", "debian", "--minimal", "--name", "debian")
        RESULTS.mkdir(exist_ok=True)
        for part in parts:
            found, shown = MEASURES[part](home)
            (RESULTS / f"{part}.json").write_text(json.dumps(found, indent=1) + "\n")
            print(f"{shown}\n", flush=True)
    finally:
        home.close()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
