"""What making an image costs: `banger image bootstrap debian` against a bare mmdebstrap of the same packages.

Turn about, both with the packages in a cache of their own. The bare one makes a directory: no kernel, no opencode, no
filesystem, no digests. Needs root and the network, as the mirror is asked whether the packages are the newest.
"""

import shlex
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.support.home import Home
from tests.support.leaks import prefix

from banger.images.debian import DebianRequest, recipe_of
from banger.images.mmdebstrap import Recipe
from banger.images.rootfs import Seed

FLAVOURS = {"minimal": ("--minimal",), "full": ()}
ROUNDS = 3
DEADLINE_S = 1800
Found = dict[str, Any]


def measure() -> Found:
    """Seconds by flavour: of each round, and of the stages of the last bootstrap."""
    home = Home()
    try:
        return {name: _flavour(home, name, words) for name, words in FLAVOURS.items()}
    finally:
        home.close()


def _flavour(home: Home, name: str, words: Sequence[str]) -> Found:
    recipe = recipe_of(DebianRequest(name=name, seed=Seed(), minimal=name == "minimal"))
    with tempfile.TemporaryDirectory(prefix=prefix()) as place:
        bare = Path(place)
        (bare / "cache").mkdir()
        # the caches get warm
        _bare(recipe, bare)
        _ours(home, words)
        found: Found = {"bare_s": [], "banger_s": []}
        for _ in range(ROUNDS):
            found["bare_s"].append(_bare(recipe, bare))
            found["banger_s"].append(_ours(home, words))
    made = next(one for one in home.json("operation", "list") if one["kind"] == "image.bootstrap")
    return found | {"stages_s": {stage["name"]: stage["seconds"] for stage in made["stages"]}}


def _bare(recipe: Recipe, place: Path) -> float:
    """mmdebstrap(1)'s own example of a cache, with cp for its slower copying."""
    root, cache = place / "root", shlex.quote(str(place / "cache"))
    archives = '"$1"/var/cache/apt/archives'
    argv = ["mmdebstrap", "--variant=minbase", "--mode=root", "--format=directory", "--skip=essential/unlink"]
    argv += [f"--setup-hook=mkdir -p {archives}; cp {cache}/*.deb {archives}/ || :"]
    argv += [f"--customize-hook=cp -u {archives}/*.deb {cache}/"]
    argv += [f"--include={','.join(recipe.packages)}", recipe.suite, str(root), *recipe.sources]
    begun = time.perf_counter()
    subprocess.run(argv, check=True, capture_output=True, timeout=DEADLINE_S)
    taken = time.perf_counter() - begun
    shutil.rmtree(root)
    return taken


def _ours(home: Home, words: Sequence[str]) -> float:
    begun = time.perf_counter()
    home.run("image", "bootstrap", "debian", "--name", "made", *words, timeout=DEADLINE_S)
    taken = time.perf_counter() - begun
    home.run("image", "delete", "made", "--yes")
    return taken


def table(found: Found) -> str:
    rows = [
        "| image | bare mmdebstrap | `banger image bootstrap` | ratio (aim: at most 1.40) |",
        "| --- | --- | --- | --- |",
    ]
    for name, of in found.items():
        bare, ours = statistics.median(of["bare_s"]), statistics.median(of["banger_s"])
        rows.append(f"| {name} | {bare:.1f} s | {ours:.1f} s | {ours / bare:.2f} |")
    return "\n".join(rows)
