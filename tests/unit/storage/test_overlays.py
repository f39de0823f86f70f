import asyncio
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from banger.model.errors import CommandFailed, Invalid
from banger.storage.overlays import create_root_overlay
from banger.system.files import allocated_bytes

GIB = 1024**3
pytestmark = pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-img is not installed")


@pytest.fixture
def base(tmp_path: Path) -> Path:
    path = tmp_path / "root.ext4"
    with path.open("wb") as file:
        file.truncate(GIB)
    return path


def _info(path: Path) -> dict[str, object]:
    done = subprocess.run(["qemu-img", "info", "--output=json", path], capture_output=True, check=True, timeout=30)
    found = json.loads(done.stdout)
    assert isinstance(found, dict)
    return found


def test_the_overlay_names_its_base_and_both_formats(base: Path, tmp_path: Path) -> None:
    asyncio.run(create_root_overlay(base, tmp_path / "vm.qcow2", 2 * GIB))
    info = _info(tmp_path / "vm.qcow2")
    assert info["format"] == "qcow2"
    assert info["backing-filename-format"] == "raw"
    assert info["full-backing-filename"] == str(base)
    assert info["virtual-size"] == 2 * GIB


def test_a_fresh_overlay_takes_next_to_nothing(base: Path, tmp_path: Path) -> None:
    asyncio.run(create_root_overlay(base, tmp_path / "vm.qcow2"))
    assert allocated_bytes(tmp_path / "vm.qcow2") < 512 * 1024
    assert _info(tmp_path / "vm.qcow2")["virtual-size"] == GIB


def test_a_base_that_pretends_to_be_qcow2_is_read_as_raw(base: Path, tmp_path: Path) -> None:
    with base.open("r+b") as file:
        file.write(b"QFI\xfb\x00\x00\x00\x03" + os.urandom(64))
    asyncio.run(create_root_overlay(base, tmp_path / "vm.qcow2"))
    assert _info(tmp_path / "vm.qcow2")["virtual-size"] == GIB


def test_a_size_below_the_base_is_refused(base: Path, tmp_path: Path) -> None:
    with pytest.raises(Invalid):
        asyncio.run(create_root_overlay(base, tmp_path / "vm.qcow2", GIB - 1))


def test_a_failure_leaves_no_file(base: Path, tmp_path: Path) -> None:
    (tmp_path / "vms").mkdir()
    with pytest.raises(CommandFailed):
        asyncio.run(create_root_overlay(base, tmp_path / "vms/vm.qcow2", 1 << 62))
    assert list((tmp_path / "vms").iterdir()) == []
