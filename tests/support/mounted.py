"""Fresh filesystems on loop devices."""

import contextlib
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

MAKERS = {"xfs": ("mkfs.xfs", "-q"), "btrfs": ("mkfs.btrfs", "-q"), "ext4": ("mkfs.ext4", "-q", "-m", "0")}


@contextlib.contextmanager
def mounted(kind: str, directory: Path, mib: int) -> Iterator[Path]:
    """A mounted filesystem of that kind, made in `directory`; skips the test where it cannot be had."""
    maker, *options = MAKERS[kind]
    if shutil.which(maker) is None:
        pytest.skip(f"{maker} is not installed")
    image, point = directory / f"{kind}.disk", directory / kind
    with image.open("wb") as file:
        file.truncate(mib << 20)
    subprocess.run([maker, *options, str(image)], check=True, capture_output=True)
    point.mkdir()
    found = subprocess.run(
        ["mount", "-t", kind, "-o", "loop", str(image), str(point)], capture_output=True, text=True, check=False
    )
    if found.returncode != 0:
        pytest.skip(f"{kind} cannot be mounted here: {found.stderr.strip()}")
    try:
        yield point
    finally:
        subprocess.run(["umount", str(point)], check=True)
