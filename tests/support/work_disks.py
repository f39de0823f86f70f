"""Work disks made by mke2fs, broken by debugfs, and read by debugfs: nothing of this is banger's own code."""

import asyncio
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import pytest

from banger.model.home import SHELL_FILES
from banger.storage.repair import mend

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIFDfN5lJmCkhIdVqU0rwjqeGqGb0V6Ah4rQ3B9y0Example banger"
OTHER = "ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAABAQC7 someone@else"
MIB = 1024 * 1024
# Content by path; None is a directory; `-> target` in a str is a symbolic link.
Tree = dict[str, bytes | str | None]
HOME: Tree = {
    ".ssh": None,
    ".ssh/authorized_keys": f"{KEY}\n".encode(),
    **{file.path: file.content for file in SHELL_FILES},
}
SMALL = ("-b", "4096", "-I", "256", "-i", "16384", "-J", "size=4", "-O", "metadata_csum_seed")


class Told:
    """What a person hears of it."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.copied: list[tuple[int, int | None, str]] = []

    def stage(self, name: str, *, deadline_s: float | None = None) -> AbstractContextManager[None]:  # pragma: no cover
        raise AssertionError("mend runs within a stage")

    def note(self, text: str) -> None:
        self.notes.append(text)

    def progress(self, done: int, total: int | None, unit: str) -> None:
        self.copied.append((done, total, unit))


def mended(disk: Path, key: str = KEY) -> list[str]:
    """Mend, and what was said."""
    told = Told()
    asyncio.run(mend(disk, key, told, lambda _: nullcontext()))  # type: ignore[arg-type]
    return told.notes


def plant(root: Path, tree: Tree) -> None:
    for name, content in tree.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            path.mkdir(exist_ok=True)
        elif isinstance(content, str):
            path.symlink_to(content.removeprefix("-> "))
        else:
            path.write_bytes(content)
    for private in [*root.rglob(".ssh"), *root.rglob("authorized_keys")]:
        if not private.is_symlink():
            private.chmod(0o700 if private.is_dir() else 0o600)


def make_disk(disk: Path, tree: Tree, *, size: int = 16 * MIB, options: tuple[str, ...] = SMALL) -> Path:
    """A filesystem whose files are root's, whoever runs the test."""
    with tempfile.TemporaryDirectory(dir=disk.parent) as directory:
        plant(Path(directory), tree)
        Path(directory).chmod(0o700)
        return make_from(disk, Path(directory), size=size, options=options)


def make_from(disk: Path, root: Path, *, size: int = 16 * MIB, options: tuple[str, ...] = SMALL) -> Path:
    with disk.open("xb") as file:
        file.truncate(size)
    disk.chmod(0o600)
    argv = [
        "mke2fs",
        "-q",
        "-F",
        "-t",
        "ext4",
        "-m",
        "0",
        "-E",
        "nodiscard,root_owner=0:0",
        "-L",
        "banger-work",
        *options,
    ]
    subprocess.run([*argv, "-d", root, disk], check=True, timeout=60, env=_environment(), capture_output=True)
    if os.geteuid():
        theirs = (path for name in HOME for path in root.rglob(name))
        names = ["<2>", *(f'"/{path.relative_to(root)}"' for path in theirs)]
        debugfs(disk, *(f"sif {name} {who} 0" for name in names for who in ("uid", "gid")))
    return disk


def _environment() -> dict[str, str]:
    return os.environ | {"PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin", "LC_ALL": "C.UTF-8"}


def debugfs(disk: Path, *commands: str) -> str:
    """Change a disk, and what debugfs says to it."""
    script = "\n".join(commands).encode()
    argv: list[str | Path] = ["debugfs", "-w", "-f", "/dev/stdin", disk]
    return subprocess.run(
        argv, input=script, check=True, timeout=60, env=_environment(), capture_output=True
    ).stdout.decode(errors="replace")


def read_tree(disk: Path) -> dict[bytes, bytes | None]:
    """Everything in a disk, by debugfs: content by path; None for a directory; `-> target` for a link."""
    found: dict[bytes, bytes | None] = {}
    out = Path(tempfile.mkdtemp(dir=disk.parent))
    try:
        argv: list[str | Path] = ["debugfs", "-R", f"rdump / {out}", disk]
        subprocess.run(argv, check=True, timeout=60, env=_environment(), capture_output=True)
        for directory, names, files in os.walk(os.fsencode(out)):
            for name in [*names, *files]:
                path = os.path.join(directory, name)  # noqa: PTH118 - names are bytes
                inside = os.path.relpath(path, os.fsencode(out))
                if os.path.islink(path):  # noqa: PTH114
                    found[inside] = b"-> " + os.readlink(path)  # noqa: PTH115
                else:
                    found[inside] = None if name in names else Path(os.fsdecode(path)).read_bytes()
    finally:
        shutil.rmtree(out)
    return found


def is_clean(disk: Path) -> bool:
    done = subprocess.run(["e2fsck", "-f", "-n", disk], timeout=60, env=_environment(), capture_output=True)
    return done.returncode == 0


def names_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def digest(disk: Path) -> str:
    return hashlib.sha256(disk.read_bytes()).hexdigest()


def stat(disk: Path, name: str) -> str:
    """What debugfs says of a file: owner, mode, links, attributes."""
    return debugfs(disk, f"stat {name}")


def replayable(disk: Path, name: str, content: bytes, *, checksums: bool = False) -> None:
    """Have the journal hold other content for a file of one block, as if the machine had died."""
    block = debugfs(disk, f"bmap {name} 0").splitlines()[-1]
    with tempfile.NamedTemporaryFile(dir=disk.parent) as file:
        file.write(content.ljust(4096, b"\0"))
        file.flush()
        debugfs(disk, "jo -c" if checksums else "jo", f"jw -b {block} {file.name}", "jc")


@contextmanager
def stand_in(monkeypatch: pytest.MonkeyPatch, program: str, script: str) -> Iterator[Path]:
    """Another program in the place of one of e2fsprogs, where every user may run it."""
    with tempfile.TemporaryDirectory() as directory, monkeypatch.context() as patch:
        Path(directory).chmod(0o755)
        path = Path(directory, program)
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        patch.setenv("PATH", f"{directory}:{os.environ['PATH']}")
        yield path
