"""Which files a drive may open, and in which format: never what their content says, never one that was not given."""

import os
import subprocess
from pathlib import Path

import pytest

from banger.model.errors import Invalid
from banger.qemu.disks import Layer, close_layers, open_layers

SECRET = b"the host's secret"


@pytest.fixture
def room(tmp_path: Path) -> Path:
    (tmp_path / "secret").write_bytes(SECRET.ljust(65536))
    (tmp_path / "base.ext4").write_bytes(b"\0" * 65536)
    return tmp_path


def overlay(room: Path, name: str, backing: str, *, kind: str = "raw") -> str:
    path = room / name
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "qcow2", "-F", kind, "-b", backing, str(path), "65536"],
        check=True,
        cwd=room,
    )
    return str(path)


def opened(path: str, *backing: Path, read_only: bool = False) -> list[Layer]:
    layers = open_layers(path, read_only=read_only, backing_files={str(file) for file in backing})
    close_layers(layers)
    return layers


def test_a_qcow2_header_in_a_raw_disk_is_data(room: Path) -> None:
    """A guest writes such a header to have the host open another file at the next start."""
    evil = overlay(room, "evil.qcow2", str(room / "secret"))
    (room / "disk.img").write_bytes(Path(evil).read_bytes())
    assert [layer.driver for layer in opened(str(room / "disk.img"), room / "secret")] == ["raw"]


def test_an_overlay_opens_only_backing_files_that_were_given(room: Path) -> None:
    path = overlay(room, "root.qcow2", str(room / "base.ext4"))
    layers = opened(path, room / "base.ext4")
    assert [(layer.driver, layer.read_only) for layer in layers] == [("qcow2", False), ("raw", True)]
    with pytest.raises(Invalid, match="which was not given: --backing-file"):
        opened(path, room / "secret")


def test_a_relative_backing_file_is_beside_its_overlay(room: Path) -> None:
    assert len(opened(overlay(room, "root.qcow2", "base.ext4"), room / "base.ext4")) == 2


def test_a_chain_of_overlays(room: Path) -> None:
    middle = overlay(room, "middle.qcow2", "base.ext4")
    top = overlay(room, "top.qcow2", middle, kind="qcow2")
    layers = opened(top, Path(middle), room / "base.ext4")
    assert [layer.driver for layer in layers] == ["qcow2", "qcow2", "raw"]


def test_a_circle_of_overlays_ends(room: Path) -> None:
    path = overlay(room, "a.qcow2", "base.ext4")
    data = bytearray(Path(path).read_bytes())
    offset = int.from_bytes(data[8:16], "big")
    data[offset : offset + 9] = b"./a.qcow2"
    Path(path).write_bytes(bytes(data).replace(b"raw\0\0", b"qcow2"))
    with pytest.raises(Invalid):
        opened(path, Path(path))


@pytest.mark.parametrize("spoil", ["not", "short", "format", "name"])
def test_a_damaged_overlay_is_refused(room: Path, spoil: str) -> None:
    path = Path(overlay(room, "root.qcow2", "base.ext4"))
    data = bytearray(path.read_bytes())
    offset = int.from_bytes(data[8:16], "big")
    if spoil == "not":
        data[:4] = b"\0\0\0\0"
    elif spoil == "short":
        data = data[:60]
    elif spoil == "format":
        data = data.replace(b"raw", b"vdi")
    else:
        data[16:20] = (1 << 31).to_bytes(4, "big")
        data[offset] = 0
    path.write_bytes(data)
    with pytest.raises(Invalid, match=r"no qcow2|damaged|never guessed"):
        opened(str(path), room / "base.ext4")


def test_what_is_no_disk_is_refused_and_nobody_waits(room: Path) -> None:
    os.mkfifo(room / "pipe")
    for path in (room / "pipe", Path("/dev/null"), room):
        with pytest.raises(Invalid):
            opened(str(path))
    with pytest.raises(Invalid, match="No such file"):
        opened(str(room / "nothing"))


def test_a_refusal_leaves_nothing_open(room: Path) -> None:
    path = overlay(room, "root.qcow2", "base.ext4")
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(Invalid):
        opened(path)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_read_only_drive_is_opened_so(room: Path) -> None:
    (layer,) = open_layers(str(room / "base.ext4"), read_only=True, backing_files=())
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.write(layer.fd, b"x")
    close_layers([layer])
