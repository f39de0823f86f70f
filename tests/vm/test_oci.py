"""A system that comes as an OCI layout becomes an image whose machines boot."""

import os
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from banger.images.oci_unpack import PROGRAMS
from tests.support.home import Home
from tests.support.oci import Member, Picture, layer, write_layout

_ABSENT = [package for program, package in PROGRAMS.items() if shutil.which(program) is None]
pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.skipif(bool(_ABSENT), reason=f"not installed: {', '.join(_ABSENT)}"),
]
# what another image lends, what banger puts in, and what only takes time here
_LEFT_OUT = (
    *("usr/lib/modules", "usr/lib/banger", "etc/systemd/system", "root", "boot", "dev", "lost+found"),
    *("usr/lib/x86_64-linux-gnu/perl", "usr/lib/x86_64-linux-gnu/gconv", "usr/lib/udev/hwdb", "usr/share/perl"),
    *(
        "usr/share/zoneinfo",
        "usr/share/doc",
        "usr/share/bash-completion",
        "var/lib/dpkg/info",
        "usr/lib/python3.11/test",
    ),
)


def _layers(root: Path, directory: Path) -> list[bytes]:
    """A whole system, with a file that the layer above takes away."""
    tree = directory / "tree"
    tree.mkdir()
    subprocess.run(["debugfs", "-R", f"rdump / {tree}", str(root)], check=True, capture_output=True, timeout=120)
    (tree / "whited-out").write_text("")

    def kept(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
        return None if member.name.startswith(_LEFT_OUT) else member

    with tarfile.open(directory / "lower.tar", "w") as archive:
        for entry in sorted(tree.iterdir()):
            archive.add(entry, entry.name, filter=kept)
    shutil.rmtree(tree)
    lower = (directory / "lower.tar").read_bytes()
    (directory / "lower.tar").unlink()
    return [lower, layer(Member(".wh.whited-out"), Member("laid-over", b"upper"))]


def _inside(root: Path, command: str) -> str:
    argv = ["debugfs", "-R", command, str(root)]
    done = subprocess.run(argv, capture_output=True, check=True, text=True, timeout=30)
    return done.stdout + done.stderr


def test_an_oci_layout_becomes_an_image_that_boots(home: Home, tmp_path: Path) -> None:
    layers = _layers(home.state / "images/debian/root.ext4", tmp_path)
    write_layout(tmp_path / "layout", Picture(layers), tags=("example.org/system:1",))
    try:
        # the last step but one of an import is a boot, until the agent answers
        options = ("--name", "imported", "--kernel-from", "debian", "--size", "1G")
        image = home.json("image", "import", str(tmp_path / "layout"), *options)
        assert home.json("image", "show", "imported")["origin"] == image["origin"]
        assert "example.org/system:1" in image["origin"]
        assert image["packages"] > 100
        root = home.state / "images/imported/root.ext4"
        assert "File not found" in _inside(root, "stat /whited-out")
        assert _inside(root, "cat /laid-over").startswith("upper")
        assert "GREETING" in _inside(root, "cat /etc/profile.d/zz-image.sh")
    finally:
        home.run("image", "delete", "imported", "--yes", status=None)
