"""Images of earlier versions: found, listed, verified, and brought up to date when somebody needs it."""

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest

from banger.images.catalog import find_image, list_images, part_path, workspace
from banger.images.parts import bring_up_to_date, replace_parts
from banger.model.errors import Invalid
from banger.model.image import IMAGE_FORMAT, INIT_VERSION, WORK_SEED, Image
from banger.paths import Paths
from tests.unit.images.older import AGENT_FILE, HELPERS, VERSIONS, make_older, publish_small, rewrite, written


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return Paths(tmp_path / "state", tmp_path / "run", tmp_path / "cache")


async def _new_seed(paths: Paths, image: Image) -> Image:
    async with workspace(paths) as work:
        seed = work / "work-seed.ext4"
        seed.write_bytes(b"new seed")
        return await replace_parts(paths, image, {WORK_SEED: seed}, seed_key="SHA256:new")


@pytest.mark.parametrize("version", VERSIONS)
def test_an_image_of_every_earlier_version_is_there(paths: Paths, version: str) -> None:
    today = make_older(paths, "debian", version)
    before = paths.image("debian").metadata.read_bytes()
    image = find_image(paths, "debian")
    assert list_images(paths) == [image]
    assert image.format == 1
    assert image.managed
    assert image.parents == ()
    for role in ("root", "kernel", "initramfs"):
        assert image.parts[role] == today.parts[role]
        assert part_path(paths, image, role).exists()
    if "seed_key" in VERSIONS[version]:
        assert image.seed_key == ""
    if "init_version" in VERSIONS[version]:
        assert image.init_version == 1
    assert paths.image("debian").metadata.read_bytes() == before, "looking has changed it"


@pytest.mark.parametrize("version", VERSIONS)
def test_it_is_brought_up_to_date_and_is_of_the_present_format_then(paths: Paths, version: str) -> None:
    make_older(paths, "debian", version)
    root = find_image(paths, "debian").parts["root"]
    made = asyncio.run(bring_up_to_date(paths, find_image(paths, "debian")))
    assert made.init_version == INIT_VERSION
    made = asyncio.run(_new_seed(paths, made))
    assert written(paths, "debian")["format"] == made.format == IMAGE_FORMAT
    assert find_image(paths, "debian") == made
    assert made.parts["root"] == root
    assert part_path(paths, made, WORK_SEED).read_bytes() == b"new seed"


@pytest.mark.parametrize("helper", HELPERS)
def test_the_agents_older_names_are_the_agents(paths: Paths, helper: str) -> None:
    make_older(paths, "debian", "no fingerprint", helper=helper)
    image = find_image(paths, "debian")
    assert helper not in image.parts
    assert part_path(paths, image, "agent").read_bytes() == AGENT_FILE
    made = asyncio.run(_new_seed(paths, image))
    document = written(paths, "debian")
    assert "agent" in document["parts"]
    assert helper not in document["parts"]
    assert part_path(paths, made, "agent").read_bytes() == AGENT_FILE


def test_of_an_older_and_a_newer_name_the_newer_one_counts(paths: Paths) -> None:
    publish_small(paths, "debian")
    document = written(paths, "debian") | {"format": 1, "fingerprint": "SHA256:older"}
    document["parts"]["rootfs"] = {**document["parts"]["root"], "file": "elsewhere.ext4"}
    rewrite(paths, "debian", document)
    image = find_image(paths, "debian")
    assert image.seed_key == "SHA256:old"
    assert image.parts["root"].file == "root.ext4"
    assert "rootfs" not in image.parts


def test_unknown_keys_are_harmless_and_the_type_of_the_root_is_always_told(paths: Paths) -> None:
    publish_small(paths, "debian")
    document = written(paths, "debian") | {"format": 1, "boot_args": "console=ttyS0", "docker": True}
    document["parts"]["root"]["mode"] = "0644"
    rewrite(paths, "debian", document)
    assert find_image(paths, "debian").boot_args == "console=ttyS0 rootfstype=ext4"


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ([], "Expected `object`"),
        ("image", "Expected `object`"),
        ({"format": "1"}, "cannot be used"),
        ({"format": True}, "cannot be used"),
        ({"format": 0}, "format 0"),
        ({"format": IMAGE_FORMAT + 1, "nothing": "that is known"}, f"has format {IMAGE_FORMAT + 1}"),
        ({"parts": []}, "cannot be used"),
        ({"parts": {"root": "root.ext4"}}, "cannot be used"),
        ({"boot_args": 5}, "cannot be used"),
    ],
)
def test_what_no_version_has_written_is_said_to_be_damaged(paths: Paths, document: Any, said: str) -> None:
    publish_small(paths, "debian")
    whole = written(paths, "debian")
    rewrite(paths, "debian", {**whole, **document} if isinstance(document, dict) else document)
    with pytest.raises(Invalid, match=said) as caught:
        find_image(paths, "debian")
    assert "banger image delete debian" in caught.value.hint


@pytest.mark.parametrize("content", [b"[" * 500_000, b'{"parts":' * 20_000, b"\xff", b"", b"{" + b" " * 2_000_000])
def test_no_content_of_image_json_is_more_than_damage(paths: Paths, content: bytes) -> None:
    publish_small(paths, "debian")
    file = paths.image("debian").metadata
    file.chmod(0o644)
    file.write_bytes(content)
    with pytest.raises(Invalid, match="debian is damaged"):
        find_image(paths, "debian")
    assert msgspec.json.decode(b"{}") == {}
