"""Verification: of sound images, and of images with one fault or many."""

import asyncio
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from banger.images.catalog import part_path
from banger.images.verify import verify_image
from banger.model.errors import BangerError
from banger.model.image import WORK_SEED, Verified
from banger.paths import Paths
from tests.unit.images.recorder import Recorder
from tests.unit.images.tiny import OTHER, key, make_image, make_legacy, needs_e2fsprogs

pytestmark = needs_e2fsprogs
KEY = key("K")


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    made = Paths(tmp_path / "state", tmp_path / "run", tmp_path / "cache")
    made.runtime.mkdir()
    return made


def verify(paths: Paths) -> tuple[Verified, Recorder]:
    recorder = Recorder()
    return asyncio.run(verify_image(paths, "debian", recorder)), recorder


def faults(paths: Paths) -> dict[str, str]:
    with pytest.raises(BangerError) as caught:
        verify(paths)
    assert caught.value.exit_code == 1
    assert caught.value.hint
    found = {fault["part"]: fault["fault"] for fault in caught.value.details["faults"]}
    assert all(f"{part}: {fault}" in caught.value.message for part, fault in found.items())
    assert list(paths.runtime.iterdir()) == []
    return found


def test_a_sound_image_passes_every_check_and_is_left_as_it_is(paths: Paths) -> None:
    make_image(paths, "debian", f"{OTHER}\n{KEY.line}\n", seed_key=KEY.fingerprint)
    before = {path: path.stat() for path in paths.image("debian").directory.iterdir()}
    found, recorder = verify(paths)
    assert found.checked == {
        "root": ["sha256", "filesystem"],
        "kernel": ["sha256"],
        "initramfs": ["sha256"],
        WORK_SEED: ["sha256", "filesystem", "key"],
    }
    assert recorder.stages == ["digests", "root filesystem", "work seed"]
    after = {path: path.stat() for path in paths.image("debian").directory.iterdir()}
    assert {path: (s.st_mtime_ns, s.st_size, s.st_ino) for path, s in before.items()} == {
        path: (s.st_mtime_ns, s.st_size, s.st_ino) for path, s in after.items()
    }


def test_an_older_image_without_a_seed_is_sound_and_a_seed_of_no_named_key_too(paths: Paths) -> None:
    make_image(paths, "debian", KEY.line, older=True)
    found, recorder = verify(paths)
    assert WORK_SEED not in found.checked
    assert any("there is none" in note for note in recorder.notes)
    make_image(paths, "other", KEY.line)
    assert asyncio.run(verify_image(paths, "other", Recorder())).checked[WORK_SEED] == ["sha256", "filesystem"]


def test_an_image_of_the_first_bangers_is_sound_and_what_it_lacks_is_said(paths: Paths) -> None:
    make_image(paths, "debian", KEY.line, older=True)
    make_legacy(paths, "debian")
    found, recorder = verify(paths)
    assert found.checked["agent"] == ["sha256"]
    assert found.seed_key == ""
    assert any("no package manifest" in note for note in recorder.notes)


def _registered(paths: Paths, kernel: Path) -> None:
    """An image whose kernel is somebody's file."""
    image = make_image(paths, "debian", KEY.line, seed_key=KEY.fingerprint)
    part_path(paths, image, "kernel").rename(kernel)
    part = msgspec.structs.replace(image.parts["kernel"], file=str(kernel), modified_ns=kernel.stat().st_mtime_ns)
    changed = msgspec.structs.replace(image, managed=False, parts={**image.parts, "kernel": part})
    file = paths.image("debian").metadata
    file.chmod(0o644)
    file.write_bytes(msgspec.json.encode(changed))


def test_a_registered_image_is_verified_where_its_files_lie(paths: Paths, tmp_path: Path) -> None:
    _registered(paths, kernel := tmp_path / "vmlinux-of-mine")
    assert verify(paths)[0].checked["kernel"] == ["sha256"]
    os.utime(kernel, (1, 1))
    told = faults(paths)["kernel"]
    assert told.startswith(f"{kernel} was changed after it was registered")
    assert "has the same content" in told
    _damage(kernel, lambda content: b"evil!!")
    assert faults(paths) == {"kernel": f"the content of {kernel} has changed"}
    _damage(kernel, lambda content: b"longer than before")
    assert faults(paths) == {"kernel": f"{kernel} has 18 bytes, and had 6 when it was registered"}
    kernel.unlink()
    assert faults(paths) == {"kernel": f"{kernel} is gone"}
    with pytest.raises(BangerError) as caught:
        verify(paths)
    assert "banger image register debian" in caught.value.hint


def _damage(path: Path, change: Callable[[bytes], bytes]) -> None:
    path.chmod(0o644)
    path.write_bytes(change(path.read_bytes()))


def _scratch(content: bytes) -> bytes:
    """The block group descriptors and what comes behind them are overwritten."""
    return content[:4096] + os.urandom(65536) + content[4096 + 65536 :]


def test_every_fault_is_told_not_only_the_first(paths: Paths) -> None:
    image = make_image(paths, "debian", KEY.line, seed_key=KEY.fingerprint)
    _damage(part_path(paths, image, "root"), _scratch)
    _damage(part_path(paths, image, "kernel"), lambda content: b"evil!!")
    part_path(paths, image, "initramfs").unlink()
    _damage(part_path(paths, image, WORK_SEED), _scratch)
    with pytest.raises(BangerError) as caught:
        verify(paths)
    told = [(fault["part"], fault["fault"]) for fault in caught.value.details["faults"]]
    assert ("kernel", "the content of vmlinux has changed") in told
    assert ("initramfs", "initramfs.cpio is missing") in told
    for part in ("root", WORK_SEED):
        said = " ".join(fault for name, fault in told if name == part)
        assert "has changed" in said
        assert "has errors" in said


def test_a_part_of_another_length_is_named(paths: Paths) -> None:
    image = make_image(paths, "debian", KEY.line, seed_key=KEY.fingerprint)
    _damage(part_path(paths, image, "kernel"), lambda content: content[:3])
    assert faults(paths) == {"kernel": "vmlinux has 3 bytes instead of 6"}


def test_a_seed_that_lets_in_another_key_than_image_json_names_is_a_fault(paths: Paths) -> None:
    make_image(paths, "debian", OTHER, seed_key=KEY.fingerprint)
    assert KEY.fingerprint in faults(paths)[WORK_SEED]


def test_a_seed_without_keys_is_a_fault(paths: Paths) -> None:
    image = make_image(paths, "debian", KEY.line, seed_key=KEY.fingerprint)
    seed = part_path(paths, image, WORK_SEED)
    seed.chmod(0o644)
    subprocess.run(["debugfs", "-w", "-R", "rm /.ssh/authorized_keys", str(seed)], check=True, capture_output=True)
    with pytest.raises(BangerError) as caught:
        verify(paths)
    assert "keys cannot be read" in caught.value.message


def test_an_image_json_that_cannot_be_used_is_a_fault_as_well(paths: Paths) -> None:
    make_image(paths, "debian", KEY.line, seed_key=KEY.fingerprint)
    file = paths.image("debian").metadata
    file.chmod(0o644)
    file.write_bytes(msgspec.json.encode({"format": 1}))
    with pytest.raises(BangerError, match=r"image\.json cannot be used") as caught:
        verify(paths)
    assert caught.value.exit_code == 1


def test_a_cancelled_verification_reads_no_further(paths: Paths) -> None:
    image = make_image(paths, "debian", KEY.line, seed_key=KEY.fingerprint)
    size = 96 * 1024 * 1024
    _damage(part_path(paths, image, "kernel"), lambda content: b"x" * size)
    part = msgspec.structs.replace(image.parts["kernel"], bytes=size)
    changed = msgspec.structs.replace(image, parts={**image.parts, "kernel": part})
    file = paths.image("debian").metadata
    file.chmod(0o644)
    file.write_bytes(msgspec.json.encode(changed))

    class Cancelling(Recorder):
        seen_bytes = 0

        def progress(self, done: int, total: int | None, unit: str) -> None:
            self.seen_bytes = done
            if done > 1024 * 1024:
                works[0].cancel()

    async def scenario() -> None:
        works.append(asyncio.create_task(verify_image(paths, "debian", recorder)))
        with pytest.raises(asyncio.CancelledError):
            await works[0]

    works: list[asyncio.Task[Verified]] = []
    recorder = Cancelling()
    asyncio.run(scenario())
    assert 0 < recorder.seen_bytes < size
    assert recorder.stages == ["digests"]
