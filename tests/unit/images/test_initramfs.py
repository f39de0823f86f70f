import shutil
import subprocess
from pathlib import Path

import pytest

from banger.images.initramfs import pack, read_busybox
from banger.model.errors import HostRequirement

MODULES = [("virtio_blk", b"\x7fELF-blk"), ("virtio_net", b"\x7fELF-net!")]


def test_the_same_input_gives_the_same_bytes() -> None:
    assert pack(b"box", MODULES) == pack(b"box", MODULES)


@pytest.mark.skipif(shutil.which("cpio") is None, reason="cpio is not installed")
def test_cpio_lists_and_unpacks_what_was_packed(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    done = subprocess.run(
        ["cpio", "-t", "--quiet"], input=pack(b"box", MODULES), capture_output=True, check=True, timeout=20
    )
    names = done.stdout.decode().split()
    assert names[:2] == ["bin", "dev"]
    assert names[-2:] == ["modules/00-virtio_blk.ko", "modules/01-virtio_net.ko"]
    subprocess.run(
        ["cpio", "-i", "--quiet", "bin*", "modules*", "init"],
        input=pack(b"box", MODULES), cwd=tmp_path / "out", check=True, timeout=20, capture_output=True,
    )  # fmt: skip
    assert (tmp_path / "out/modules/01-virtio_net.ko").read_bytes() == b"\x7fELF-net!"
    assert (tmp_path / "out/bin/busybox").read_bytes() == b"box"
    assert (tmp_path / "out/init").stat().st_mode & 0o777 == 0o755
    assert str((tmp_path / "out/bin/sh").readlink()) == "busybox"


def test_init_is_valid_shell() -> None:
    archive = pack(b"box", [])
    start = archive.index(b"#!/bin/sh")
    script = archive[start : archive.index(b"\0", start)]
    subprocess.run(["sh", "-n"], input=script, check=True, timeout=20)


def test_a_busybox_that_is_absent_or_not_static_is_a_host_requirement(tmp_path: Path) -> None:
    with pytest.raises(HostRequirement) as caught:
        read_busybox(tmp_path / "none")
    assert "busybox-static" in caught.value.hint
    (tmp_path / "script").write_text("#!/bin/sh\n")
    with pytest.raises(HostRequirement, match="not a static"):
        read_busybox(tmp_path / "script")
