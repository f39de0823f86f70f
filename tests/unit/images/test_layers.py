"""Layers: which one a build may begin from, and which go when there are too many."""

import asyncio
import struct
from pathlib import Path

import pytest

from banger.images.layers import Layers, layer_keys
from banger.system.process import find_program, run

STEPS = [("packages", "a"), ("script", "b")]
MIB = 1 << 20


def make_disk(base: Path, disk: Path, data: int = 0) -> None:
    argv = [find_program("qemu-img", package="qemu-utils"), "create", "-q", "-f", "qcow2", "-F", "raw"]
    asyncio.run(run([*argv, "-b", str(base), str(disk), "1M"], timeout=30))
    with disk.open("ab") as file:
        file.write(bytes(range(1, 256)) * (data // 255))


@pytest.fixture
def base(tmp_path: Path) -> Path:
    path = tmp_path / "root.ext4"
    path.write_bytes(bytes(MIB))
    return path


def save(layers: Layers, key: str, base: Path, data: int = 0) -> None:
    fresh = layers.fresh(key)
    make_disk(base, fresh, data)
    layers.commit(key, fresh, "debian", ["packages"])


def test_a_key_hangs_on_everything_before_it() -> None:
    first, second = layer_keys("sha", 100, STEPS)
    assert layer_keys("sha", 100, STEPS) == [first, second]
    assert layer_keys("sha", 100, STEPS[:1]) == [first]
    assert layer_keys("sha", 100, [STEPS[0], ("script", "c")])[0] == first
    others = [
        layer_keys("other", 100, STEPS),
        layer_keys("sha", 101, STEPS),
        layer_keys("sha", 100, [("packages", "x"), STEPS[1]]),
        layer_keys("sha", 100, STEPS[::-1]),
        layer_keys("sha", 100, [("copy", "a"), STEPS[1]]),
    ]
    assert len({keys[1] for keys in others} | {second}) == len(others) + 1


def test_the_longest_known_beginning_is_used(tmp_path: Path, base: Path) -> None:
    layers = Layers(tmp_path / "layers", 100 * MIB)
    keys = ["one", "two", "three"]
    assert layers.longest(keys, base) == 0
    save(layers, "two", base)
    assert layers.longest(keys, base) == 2
    assert layers.longest(["one", "other", "three"], base) == 0
    save(layers, "one", base)
    assert layers.longest(["one", "other", "three"], base) == 1


def test_a_layer_over_another_file_is_not_used(tmp_path: Path, base: Path) -> None:
    layers = Layers(tmp_path / "layers", 100 * MIB)
    other = tmp_path / "passwd"
    other.write_bytes(bytes(MIB))
    save(layers, "one", other)
    assert layers.longest(["one"], base) == 0


@pytest.mark.parametrize("damage", ["cut", "foreign", "link", "unrecorded"])
def test_a_layer_that_is_not_ours_is_not_used(tmp_path: Path, base: Path, damage: str) -> None:
    layers = Layers(tmp_path / "layers", 100 * MIB)
    save(layers, "one", base)
    disk = layers.disk("one")
    if damage == "cut":
        disk.write_bytes(disk.read_bytes()[:50])
    elif damage == "foreign":
        with disk.open("r+b") as file:
            file.seek(72)
            file.write(struct.pack(">Q", 1 << 2))  # its data in another file
    elif damage == "link":
        disk.rename(disk.with_suffix(".away"))
        disk.symlink_to(disk.with_suffix(".away"))
    else:
        disk.with_suffix(".json").unlink()
    assert layers.longest(["one"], base) == 0


def test_the_least_recently_used_goes(tmp_path: Path, base: Path) -> None:
    layers = Layers(tmp_path / "layers", 5 * MIB)
    save(layers, "one", base, 2 * MIB)
    save(layers, "two", base, 2 * MIB)
    layers.used("one")
    save(layers, "three", base, 2 * MIB)
    assert [layer.key for layer in layers.all()] == ["three", "one"]
    assert sorted(path.name for path in (tmp_path / "layers").iterdir()) == [
        "one.json",
        "one.qcow2",
        "three.json",
        "three.qcow2",
    ]
    assert layers.prune(0) > 4 * MIB
    assert layers.all() == []


def test_what_a_dead_daemon_left_goes(tmp_path: Path, base: Path) -> None:
    layers = Layers(tmp_path / "layers", 100 * MIB)
    save(layers, "one", base)
    make_disk(base, layers.fresh("two"))
    make_disk(base, layers.disk("unrecorded"))
    asyncio.run(layers.sweep())
    assert sorted(path.name for path in (tmp_path / "layers").iterdir()) == ["one.json", "one.qcow2"]
    asyncio.run(Layers(tmp_path / "nowhere", MIB).sweep())
