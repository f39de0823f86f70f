"""`banger image verify`, as it is typed."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from banger.paths import Paths
from tests.support.home import Home
from tests.unit.images.tiny import key, make_image, needs_e2fsprogs

pytestmark = needs_e2fsprogs


@pytest.fixture(scope="module")
def home() -> Iterator[Home]:
    made = Home()
    paths = Paths(made.state, made.runtime, made.root / "cache")
    for name in ("sound", "damaged"):
        make_image(paths, name, key("K").line, seed_key=key("K").fingerprint)
    kernel = paths.image("damaged").kernel
    kernel.chmod(0o644)
    kernel.write_bytes(b"evil!!")
    paths.image("damaged").initramfs.unlink()
    yield made
    made.close()


def test_a_sound_image_is_told_so_with_what_was_checked(home: Home) -> None:
    document = home.json("image", "verify", "sound")
    assert document["image"] == "sound"
    assert document["checked"]["root"] == ["sha256", "filesystem"]
    assert b"sound" in home.run("image", "verify", "sound").stdout


def test_a_damaged_image_ends_with_1_and_every_fault(home: Home) -> None:
    said = home.error("image", "verify", "damaged", status=1)
    assert "the content of vmlinux has changed" in said
    assert "initramfs.cpio is missing" in said
    document = home.json("image", "verify", "damaged", status=1)
    assert {fault["part"] for fault in document["error"]["details"]["faults"]} == {"kernel", "initramfs"}


def test_an_image_that_is_not_there_is_not_found(home: Home) -> None:
    assert "bootstrap" in home.error("image", "verify", "nothing", status=3)
    assert "letters" in home.error("image", "verify", "No_Such", status=2)


def test_the_daemon_takes_what_was_replaced_out_of_images_when_it_starts(home: Home) -> None:
    home.run("daemon", "stop")
    left = Path(home.state / "images/sound/work-seed-0123abcd.ext4")
    left.write_bytes(b"left")
    home.run("image", "list")
    assert not left.exists()
    home.run("image", "verify", "sound")
