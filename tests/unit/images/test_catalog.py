import asyncio
import hashlib
from pathlib import Path

import msgspec
import pytest

from banger.images.catalog import (
    delete_image,
    find_image,
    list_images,
    measure_parts,
    publish,
    sweep,
    workspace,
)
from banger.model.errors import Conflict, Invalid, NotFound
from banger.model.image import Image
from banger.paths import Paths


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return Paths(tmp_path / "state", tmp_path / "run", tmp_path / "cache")


async def _publish(paths: Paths, name: str) -> Image:
    async with workspace(paths) as work:
        out = work / "image"
        out.mkdir()
        files = {"root": out / "root.ext4", "kernel": out / "vmlinux", "initramfs": out / "initramfs.cpio"}
        for role, file in files.items():
            file.write_bytes(role.encode())
        image = Image(
            name=name, distro="debian", release="12", kernel_release="6", boot_args="rootfstype=ext4",
            parts=measure_parts(out, files), packages=0, created_at="2026-01-01T00:00:00+00:00", origin="test",
            needs_acpi=True,
        )  # fmt: skip
        publish(paths, image, out)
    return image


def make(paths: Paths, name: str) -> Image:
    return asyncio.run(_publish(paths, name))


def test_a_published_image_is_found_listed_and_read_only(paths: Paths) -> None:
    image = make(paths, "debian")
    assert find_image(paths, "debian") == image
    assert list_images(paths) == [image]
    assert image.parts["root"].sha256 == hashlib.sha256(b"root").hexdigest()
    assert paths.image("debian").root.stat().st_mode & 0o222 == 0
    assert [entry.name for entry in paths.images.iterdir()] == ["debian"]


def test_no_images_directory_means_no_images(paths: Paths) -> None:
    assert list_images(paths) == []


def test_an_unknown_name_is_met_with_the_nearest_ones_and_the_command(paths: Paths) -> None:
    make(paths, "debian-12")
    with pytest.raises(NotFound) as caught:
        find_image(paths, "debain-12")
    assert "debian-12" in caught.value.hint
    assert "banger image bootstrap debian" in caught.value.hint


@pytest.mark.parametrize("name", ["../etc", "Debian", "", "a/b", ".tmp-1"])
def test_a_name_that_is_no_label_never_reaches_the_disk(paths: Paths, name: str) -> None:
    with pytest.raises(Invalid):
        find_image(paths, name)


def _edit(paths: Paths, **changes: object) -> None:
    file = paths.image("debian").metadata
    document = msgspec.json.decode(file.read_bytes()) | changes
    file.chmod(0o644)
    file.write_bytes(msgspec.json.encode(document))


PART = {"bytes": 4, "sha256": ""}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"format": 99}, "format 99"),
        ({"name": "other"}, "calls it"),
        ({"parts": {}}, "no root"),
        ({"packages": "many"}, "cannot be used"),
        ({"parts": {"root": {**PART, "file": "../../passwd"}, "kernel": PART, "initramfs": PART}}, "cannot be used"),
        (
            {"parts": {role: {**PART, "file": "../../../passwd"} for role in ("root", "kernel", "initramfs")}},
            "outside",
        ),
        ({"parts": {role: {**PART, "file": "gone"} for role in ("root", "kernel", "initramfs")}}, "missing"),
        ({"parts": {role: {**PART, "file": "vmlinux"} for role in ("root", "kernel", "initramfs")}}, "bytes"),
    ],
)  # fmt: skip
def test_a_broken_image_is_left_out_of_the_list_and_explained_when_asked_for(
    paths: Paths, changes: dict[str, object], said: str
) -> None:
    make(paths, "debian")
    _edit(paths, **changes)
    assert list_images(paths) == []
    with pytest.raises(Invalid, match=said) as caught:
        find_image(paths, "debian")
    assert "make it again" in caught.value.hint


def test_a_linked_part_is_not_followed(paths: Paths) -> None:
    make(paths, "debian")
    paths.image("debian").kernel.unlink()
    paths.image("debian").kernel.symlink_to("/dev/zero")
    with pytest.raises(Invalid, match="missing"):
        find_image(paths, "debian")


def test_a_name_can_be_taken_only_once(paths: Paths) -> None:
    make(paths, "debian")
    with pytest.raises(Conflict):
        make(paths, "debian")
    assert [entry.name for entry in paths.images.iterdir()] == ["debian"]


def test_deleting_takes_everything_and_an_unknown_image_cannot_be_deleted(paths: Paths) -> None:
    make(paths, "debian")
    asyncio.run(delete_image(paths, "debian"))
    assert list(paths.images.iterdir()) == []
    with pytest.raises(NotFound):
        asyncio.run(delete_image(paths, "debian"))


def test_a_failing_or_cancelled_workspace_leaves_nothing_and_sweep_takes_what_a_killed_one_left(paths: Paths) -> None:
    async def fails() -> None:
        async with workspace(paths) as work:
            (work / "deep").mkdir()
            (work / "deep/file").write_text("x")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        asyncio.run(fails())
    assert list(paths.images.iterdir()) == []
    make(paths, "debian")
    (paths.images / ".tmp-dead/root").mkdir(parents=True)
    asyncio.run(sweep(paths))
    assert [entry.name for entry in paths.images.iterdir()] == ["debian"]
