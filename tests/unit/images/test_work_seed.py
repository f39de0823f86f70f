"""Work seeds, made by the real e2fsprogs and read back by them."""

import asyncio
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from banger.images.work_seed import SEED_BYTES, make_work_seed, measure
from banger.system.ext4 import check_ext4

pytestmark = pytest.mark.skipif(shutil.which("mke2fs") is None, reason="e2fsprogs is not installed")


def _read(seed: Path, command: str) -> str:
    return subprocess.run(
        ["debugfs", "-R", command, str(seed)], capture_output=True, check=True, text=True, timeout=30
    ).stdout


def _home(directory: Path) -> Path:
    home = directory / "root"
    (home / ".ssh").mkdir(parents=True, mode=0o700)
    (home / ".ssh/authorized_keys").write_text("ssh-ed25519 AAAA banger\n")
    (home / ".bashrc").write_text("mine\n")
    return home


def test_a_seed_has_the_home_and_the_shell_files_that_it_lacked(tmp_path: Path) -> None:
    seed = tmp_path / "seed.ext4"
    asyncio.run(make_work_seed(_home(tmp_path), seed))
    asyncio.run(check_ext4(seed))
    assert seed.stat().st_size == SEED_BYTES
    assert _read(seed, "cat /.ssh/authorized_keys") == "ssh-ed25519 AAAA banger\n"
    assert _read(seed, "cat /.bashrc") == "mine\n"
    assert "PATH=" in _read(seed, "cat /.profile")
    assert "Mode:  0700" in _read(seed, "stat /")


def test_a_seed_is_as_large_as_its_home_needs(tmp_path: Path) -> None:
    home = _home(tmp_path)
    assert measure(home).seed_bytes == SEED_BYTES
    (home / "big").write_bytes(bytes(40 * 1024 * 1024))
    assert measure(home).seed_bytes == 2 * SEED_BYTES
    seed = tmp_path / "seed.ext4"
    asyncio.run(make_work_seed(home, seed))
    asyncio.run(check_ext4(seed))
    assert seed.stat().st_size == 2 * SEED_BYTES


def test_a_home_of_many_small_files_gets_an_inode_for_each(tmp_path: Path) -> None:
    home = _home(tmp_path)
    (home / "many").mkdir()
    for number in range(4500):
        (home / f"many/{number}").touch()
    seed = tmp_path / "seed.ext4"
    asyncio.run(make_work_seed(home, seed))
    asyncio.run(check_ext4(seed))
    assert "Type: regular" in _read(seed, "stat /many/4499")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to have files of others")
def test_all_in_a_seed_is_roots_whoever_owns_the_tree(tmp_path: Path) -> None:
    home = _home(tmp_path)
    (home / "link").symlink_to("/nowhere")
    os.link(home / ".bashrc", home / "hard")
    for path in (home, *home.rglob("*")):
        os.lchown(path, 12345, 12345)
    seed = tmp_path / "seed.ext4"
    asyncio.run(make_work_seed(home, seed))
    asyncio.run(check_ext4(seed))
    for name in ("/", "/.ssh", "/.ssh/authorized_keys", "/.profile", "/hard", "/link"):
        found = _read(seed, f"stat {name}")
        assert re.search(r"User: +0 +Group: +0 ", found), name
