"""Homes read out of filesystems, those included that were made to do harm."""

import asyncio
import shutil
import subprocess
from pathlib import Path

import pytest

from banger.images import unmounted_tree
from banger.images.homes import ROOT_HOME, copied_home, put_key
from banger.images.work_seed import remake_work_seed
from banger.model.errors import CommandFailed, Invalid
from banger.system.ext4 import MIB, check_ext4, make_ext4
from tests.unit.images.tiny import OTHER, key, keys_in, needs_e2fsprogs, read, room

pytestmark = needs_e2fsprogs
NEW = key("N")


def _filesystem(directory: Path, tree: Path) -> Path:
    made = directory / "fs.ext4"
    # without checksums, so that an edit of a name is not noticed
    asyncio.run(make_ext4(made, 16 * MIB, label="t", tree=tree, options=("-O", "^metadata_csum")))
    return made


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "tree/root/deep/er").mkdir(parents=True)
    (tmp_path / "tree/root/deep/er/file").write_text("content")
    (tmp_path / "tree/root/link").symlink_to("/etc/passwd")
    (tmp_path / "out").mkdir()
    return tmp_path / "tree"


def _remake(filesystem: Path, out: Path) -> Path:
    seed = out / "seed.ext4"
    asyncio.run(remake_work_seed(filesystem, ROOT_HOME, seed, room, key=NEW, old=""))
    return seed


def test_a_seed_made_of_a_filesystem_has_its_home_and_nothing_else_is_left(tmp_path: Path, tree: Path) -> None:
    seed = _remake(_filesystem(tmp_path, tree), tmp_path / "out")
    asyncio.run(check_ext4(seed))
    assert read(seed, "cat /deep/er/file") == "content"
    assert 'Fast link dest: "/etc/passwd"' in read(seed, "stat /link")
    assert keys_in(seed) == [NEW.line]
    assert "PATH=" in read(seed, "cat /.profile")
    assert list((tmp_path / "out").iterdir()) == [tmp_path / "out/seed.ext4"]


def test_a_filesystem_that_only_we_may_read_is_read(tmp_path: Path, tree: Path) -> None:
    filesystem = _filesystem(tmp_path, tree)
    filesystem.chmod(0o400)
    assert read(_remake(filesystem, tmp_path / "out"), "cat /deep/er/file") == "content"
    assert list((tmp_path / "out").iterdir()) == [tmp_path / "out/seed.ext4"]


def _refused(filesystem: Path, out: Path) -> str:
    with pytest.raises((Invalid, CommandFailed)) as caught:
        _remake(filesystem, out)
    assert caught.value.hint
    assert list(out.iterdir()) == []
    return caught.value.message


def test_a_name_that_leads_out_is_refused(tmp_path: Path, tree: Path) -> None:
    (tree / "root/NAMETHATGOESUP").write_text("evil")
    filesystem = _filesystem(tmp_path, tree)
    content = filesystem.read_bytes()
    assert content.count(b"NAMETHATGOESUP") == 1
    filesystem.write_bytes(content.replace(b"NAMETHATGOESUP", b"../../../../ev"))
    assert "a name that cannot be one" in _refused(filesystem, tmp_path / "out")
    assert not list(tmp_path.rglob("ev"))


def test_a_name_that_is_there_twice_is_refused(tmp_path: Path, tree: Path) -> None:
    (tree / "root/samename1").symlink_to("/tmp")
    (tree / "root/samename2").mkdir()
    filesystem = _filesystem(tmp_path, tree)
    filesystem.write_bytes(filesystem.read_bytes().replace(b"samename2", b"samename1"))
    assert "a name that cannot be one" in _refused(filesystem, tmp_path / "out")


def test_a_directory_that_holds_itself_is_refused(tmp_path: Path, tree: Path) -> None:
    filesystem = _filesystem(tmp_path, tree)
    subprocess.run(
        ["debugfs", "-w", "-R", "link /root/deep /root/deep/er/again", str(filesystem)], check=True, capture_output=True
    )
    assert "two places" in _refused(filesystem, tmp_path / "out")


@pytest.mark.parametrize(("bound", "value"), [("MAX_BYTES", 6), ("MAX_FILES", 3), ("MAX_DEPTH", 2)])
def test_a_home_beyond_a_bound_is_refused(
    tmp_path: Path, tree: Path, bound: str, value: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unmounted_tree, bound, value)
    assert "more than" in _refused(_filesystem(tmp_path, tree), tmp_path / "out")


def test_of_a_root_without_a_home_a_seed_is_made_all_the_same(tmp_path: Path, tree: Path) -> None:
    shutil.rmtree(tree / "root")
    seed = _remake(_filesystem(tmp_path, tree), tmp_path / "out")
    assert keys_in(seed) == [NEW.line]
    assert list((tmp_path / "out").iterdir()) == [seed]


@pytest.mark.parametrize("instead", ["link", "file"])
def test_a_home_that_is_no_directory_is_refused(tmp_path: Path, tree: Path, instead: str) -> None:
    shutil.rmtree(tree / "root")
    if instead == "link":
        (tree / "root").symlink_to("etc")
        (tree / "etc").mkdir()
    else:
        (tree / "root").write_text("")
    assert _refused(_filesystem(tmp_path, tree), tmp_path / "out")


def test_a_file_that_is_no_filesystem_is_told(tmp_path: Path, tree: Path) -> None:
    (tmp_path / "fs").write_bytes(bytes(MIB))
    assert "super-block" in _refused(tmp_path / "fs", tmp_path / "out")


def test_links_in_a_home_are_not_followed_for_the_key(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "authorized_keys").write_text(f"{OTHER}\n")
    for number, (name, target) in enumerate(((".ssh", outside), (".ssh/authorized_keys", outside / "authorized_keys"))):
        home = tmp_path / f"home{number}"
        (home / name).parent.mkdir(parents=True)
        (home / name).symlink_to(target)
        put_key(home, NEW, "")
        assert not (home / ".ssh").is_symlink()
        assert (home / ".ssh/authorized_keys").read_text() == f"{NEW.line}\n"
        assert (home / ".ssh/authorized_keys").stat().st_mode & 0o777 == 0o600
    assert (outside / "authorized_keys").read_text() == f"{OTHER}\n"


def test_a_full_disk_refuses_before_anything_is_copied(tmp_path: Path, tree: Path) -> None:
    asked = []

    def none(needed: int) -> None:
        asked.append(needed)
        raise Invalid("no room", hint="x")

    filesystem = _filesystem(tmp_path, tree)

    async def scenario() -> None:
        async with copied_home(filesystem, ROOT_HOME, tmp_path / "out", none):  # type: ignore[arg-type]
            pass

    with pytest.raises(Invalid, match="no room"):
        asyncio.run(scenario())
    assert asked[0] >= 2 * len("content")
    assert list((tmp_path / "out").iterdir()) == []
