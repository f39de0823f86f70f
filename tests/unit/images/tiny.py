"""Small images with real filesystems, complete but for a kernel that runs."""

import asyncio
import contextlib
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from banger.images.catalog import measure_parts, publish, workspace
from banger.images.initramfs import pack
from banger.images.work_seed import make_work_seed
from banger.model.image import INIT_VERSION, WORK_SEED, Image
from banger.model.keys import PublicKey, fingerprint
from banger.paths import ImagePaths, Paths
from banger.system.ext4 import MIB, make_ext4

needs_e2fsprogs = pytest.mark.skipif(shutil.which("debugfs") is None, reason="e2fsprogs is not installed")
OTHER = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOtherKeyOtherKeyOtherKeyOtherKeyOtherKeyOthe me@elsewhere"


def key(letter: str, comment: str = "banger") -> PublicKey:
    """A key that nobody has."""
    line = f"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI{letter * 43} {comment}"
    return PublicKey(line, fingerprint(line))


@contextlib.contextmanager
def room(needed: int) -> Iterator[None]:
    """As much as anybody wants."""
    assert needed >= 0
    yield


def make_image(
    paths: Paths, name: str, lines: str, *, seed_key: str = "", older: bool = False, parents: tuple[str, ...] = ()
) -> Image:
    """An image whose home lets these keys in; an older one has neither a work seed nor an init that mounts it."""
    return asyncio.run(_make(paths, name, lines, seed_key, older=older, parents=parents))


def make_legacy(paths: Paths, name: str) -> None:
    """Let an older image's image.json be as the first bangers wrote it: no format, no key, the agent's older name."""
    where = paths.image(name)
    document = msgspec.json.decode(where.metadata.read_bytes(), type=dict[str, Any])
    for field in ("format", "managed", "parents", "memory_mib", "seed_key", "init_version", "packages"):
        del document[field]
    for part in document["parts"].values():
        del part["modified_ns"]
    document["parts"]["vsock-ping"] = document["parts"]["kernel"]
    where.metadata.chmod(0o644)
    where.metadata.write_bytes(msgspec.json.encode(document))


async def _make(paths: Paths, name: str, lines: str, seed_key: str, *, older: bool, parents: tuple[str, ...]) -> Image:
    async with workspace(paths) as work:
        home, out = work / "tree/root", ImagePaths(work / "image")
        (home / ".ssh").mkdir(parents=True, mode=0o700)
        (home / ".ssh/authorized_keys").write_text(lines)
        (home / ".bashrc").write_text("# the image's\n")
        out.directory.mkdir()
        await make_ext4(out.root, 16 * MIB, label="tiny", tree=work / "tree")
        out.kernel.write_bytes(b"kernel")
        out.initramfs.write_bytes(pack(b"box", []).replace(b"#!/bin/sh", b"#!/bin/ol") if older else pack(b"box", []))
        roles = {"root": out.root, "kernel": out.kernel, "initramfs": out.initramfs}
        if not older:
            await make_work_seed(home, out.work_seed)
            roles[WORK_SEED] = out.work_seed
        image = Image(
            name=name, distro="debian", release="12", kernel_release="6", boot_args="rootfstype=ext4",
            parts=measure_parts(out.directory, roles), packages=0, created_at="2026-01-01T00:00:00+00:00",
            origin="test", needs_acpi=True, seed_key=seed_key, init_version=1 if older else INIT_VERSION,
            parents=parents,
        )  # fmt: skip
        publish(paths, image, out.directory)
    return image


def read(filesystem: Path, command: str) -> str:
    """What debugfs prints."""
    argv = ["debugfs", "-R", command, str(filesystem)]
    return subprocess.run(argv, capture_output=True, check=True, text=True, timeout=30).stdout


def keys_in(seed: Path) -> list[str]:
    """The lines of a seed's authorized_keys."""
    return read(seed, "cat /.ssh/authorized_keys").splitlines()
