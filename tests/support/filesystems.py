"""Fresh filesystems in files, mounted for a while."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

MAKERS = {
    "ext4": ("mke2fs", "-q", "-F", "-t", "ext4", "-E", "assume_storage_prezeroed=1"),
    "xfs": ("mkfs.xfs", "-q"),
    "btrfs": ("mkfs.btrfs", "-q"),
}


class CannotMount(Exception):
    """Why there can be no such filesystem here."""


@contextmanager
def mounted(kind: str, where: Path, size: int) -> Iterator[Path]:
    """An empty filesystem of `size` bytes on a loop device, in the directory `where`. Raises `CannotMount`."""
    maker, *options = MAKERS[kind]
    if os.geteuid() != 0:
        raise CannotMount("mounts are root's")
    if shutil.which(maker) is None:
        raise CannotMount(f"{maker} is not installed")
    image, point = where / f"{kind}.img", where / kind
    with image.open("xb") as file:
        file.truncate(size)
    try:
        subprocess.run([maker, *options, str(image)], check=True, capture_output=True)
        point.mkdir()
        mount = ["mount", "-t", kind, "-o", "loop", str(image), str(point)]
        done = subprocess.run(mount, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise CannotMount(f"{kind} cannot be mounted here: {done.stderr.strip()}")
        try:
            yield point
        finally:
            subprocess.run(["umount", str(point)], check=True)
    finally:
        image.unlink()


@contextmanager
def mounted_or_skip(kind: str, where: Path, size: int) -> Iterator[Path]:
    """The same for a test, which is skipped where it cannot be."""
    try:
        with mounted(kind, where, size) as point:
            yield point
    except CannotMount as reason:
        pytest.skip(str(reason))
