import os
import random
import subprocess
import time
from pathlib import Path

import pytest

from banger.storage.findings import dated
from banger.storage.unnest import merge
from banger.system.ext4_reader import Entry
from tests.support.work_disks import (
    HOME,
    MIB,
    SMALL,
    Tree,
    debugfs,
    digest,
    is_clean,
    make_disk,
    make_from,
    mended,
    plant,
    read_tree,
    stat,
)

TODAY = time.strftime("%Y-%m-%d")
TREES = int(os.environ.get("BANGER_TEST_TREES", "24"))  # random ones, in all
NESTED: Tree = {f"root/{name}": content for name, content in HOME.items()}
ODD_NAMES = (
    " ", "a b", '"', '""', '"quoted"', "back\\slash", "-rf", "--", "new\nline", "\n", "tab\there", "\r", "<12>", "#",
    "!ls", "ünïcode", "日本", "*", "$(id)", "'", ";", "|", "~", "..a", "...", "x" * 255, "ä" * 127, "\x01", "\x7f",
    os.fsdecode(b"\xff\xfe"), os.fsdecode(b"latin\xe9"),
)  # fmt: skip


def test_a_home_one_level_too_deep_is_moved_up(tmp_path: Path) -> None:
    disk = make_disk(tmp_path / "work.ext4", NESTED | {"root/project/notes": b"mine", "root/link": "-> project/notes"})
    notes = mended(disk)
    assert notes == ["root's home lay one level too deep: 5 entries were moved from /root/root to /root"]
    found = read_tree(disk)
    assert found[b"project/notes"] == b"mine"
    assert found[b"link"] == b"-> project/notes"
    assert b"root" not in found
    assert is_clean(disk)
    before = digest(disk)
    assert mended(disk) == []
    assert digest(disk) == before


@pytest.mark.parametrize("mark", [".bashrc", ".profile", ".ssh/authorized_keys"])
def test_one_file_of_a_home_tells_it(tmp_path: Path, mark: str) -> None:
    disk = make_disk(tmp_path / "work.ext4", {f"root/{mark}": b"from before", "root/data": b"mine"})
    mended(disk)
    found = read_tree(disk)
    assert found[b"data"] == b"mine"
    assert found[mark.encode()] is not None
    assert (found[mark.encode()] or b"").startswith(b"from before")
    assert mended(disk) == []


@pytest.mark.parametrize(
    "tree",
    [
        HOME | NESTED | {"project/notes": b"mine"},  # a person's copy of a home, within a home that is in use
        HOME | {"root/data": b"no home"},
        {"root/data": b"no home"} | HOME,
        HOME | {"root": b"a file"},
        HOME | {"root": "-> project", "project/.bashrc": b""},
    ],
)
def test_other_directories_called_root_stay(tmp_path: Path, tree: Tree) -> None:
    disk = make_disk(tmp_path / "work.ext4", tree)
    before = digest(disk)
    assert mended(disk) == []
    assert digest(disk) == before


def test_what_a_first_login_leaves_is_no_home_in_use(tmp_path: Path) -> None:
    used: Tree = {".bash_history": b"ls\n", ".cache/x": b"1", ".config": None, ".local/share": None}
    disk = make_disk(tmp_path / "work.ext4", HOME | NESTED | used | {"root/.bashrc": b"my own", "root/.cache/y": b"2"})
    notes = mended(disk)
    assert f".bashrc.nested-{TODAY}" in notes[1]
    found = read_tree(disk)
    assert found[b".bashrc"] == HOME[".bashrc"]
    assert found[f".bashrc.nested-{TODAY}".encode()] == b"my own"
    assert found[b".cache/x"] == b"1"
    assert found[f".cache.nested-{TODAY}/y".encode()] == b"2"
    assert mended(disk) == []


def test_a_home_in_use_that_lacks_a_shell_file_gets_its_nested_one(tmp_path: Path) -> None:
    disk = make_disk(tmp_path / "work.ext4", NESTED | {"project/new": b"1", "root/project/old": b"2"})
    mended(disk)
    found = read_tree(disk)
    assert found[b"project/new"] == b"1"
    assert found[f"project.nested-{TODAY}/old".encode()] == b"2"
    assert found[b".profile"] == HOME[".profile"]


def test_several_levels_become_none(tmp_path: Path) -> None:
    tree: Tree = {"root/.ssh/authorized_keys": b"", "root/root/.profile": b"", "root/root/root/.bashrc": b"deepest"}
    disk = make_disk(tmp_path / "work.ext4", tree | {"root/root/root/data": b"mine"})
    mended(disk)
    found = read_tree(disk)
    assert found[b"data"] == b"mine"
    assert found[b".bashrc"] == b"deepest"
    assert b"root" not in found
    assert is_clean(disk)
    assert mended(disk) == []


def test_names_of_every_kind_are_moved(tmp_path: Path) -> None:
    tree: Tree = {f"root/{name}": name.encode(errors="surrogateescape") for name in ODD_NAMES}
    disk = make_disk(tmp_path / "work.ext4", NESTED | tree | {"-rf": b"there already", "x" * 255: b"there already"})
    mended(disk)
    found = read_tree(disk)
    for name in ODD_NAMES:
        raw = os.fsencode(name)
        if name == "-rf":
            raw = f"-rf.nested-{TODAY}".encode()
        elif name == "x" * 255:
            raw = f"{'x' * 237}.nested-{TODAY}".encode()
        assert found[raw] == os.fsencode(name)
    assert found[b"-rf"] == found[b"x" * 255] == b"there already"
    assert is_clean(disk)


def test_attributes_links_times_owners_and_holes_survive(tmp_path: Path) -> None:
    root = tmp_path / "tree"
    plant(root, NESTED | {"root/one": b"shared", "root/dir/inner": b"1", "root/own": b"1", "root/old": b"1"})
    (root / "root/two").hardlink_to(root / "root/one")
    (root / "root/dir/three").hardlink_to(root / "root/one")
    with (root / "root/holes").open("wb") as file:
        file.seek(4 * MIB)
        file.write(b"end")
    os.utime(root / "root/old", (1, 1))
    os.setxattr(root / "root/own", b"user.note", b"mine")
    (root / "root/own").chmod(0o4751)
    disk = make_from(tmp_path / "work.ext4", root)
    debugfs(disk, "sif /root/own uid 100000", "sif /root/own gid 3", "cd /root", "mknod pipe p")
    names = ("one", "two", "dir/three", "dir/inner", "own", "old", "holes", "pipe")
    before = {name: stat(disk, f"/root/{name}").split("\n", 1)[1] for name in names}
    mended(disk)
    assert {name: stat(disk, f"/{name}").split("\n", 1)[1] for name in names} == before
    assert "Links: 3" in before["one"]
    assert "user.note" in before["own"]
    assert is_clean(disk)


@pytest.mark.parametrize("options", [SMALL, ("-b", "1024", "-O", "^extents,^64bit,^metadata_csum,^dir_index")])
def test_directories_with_thousands_of_names(tmp_path: Path, options: tuple[str, ...]) -> None:
    files: Tree = {f"root/file number {number:05}": b"" for number in range(450)}
    inner: Tree = {f"root/inner/file number {number:05}": b"" for number in range(450)}
    beside: Tree = {f"beside {number:04}": b"" for number in range(300)}
    disk = make_disk(tmp_path / "work.ext4", NESTED | files | inner | beside, options=(*options, "-N", "4000"))
    subprocess.run(["e2fsck", "-f", "-y", "-D", disk], check=False, timeout=60, capture_output=True)  # with indexes
    before = read_tree(disk)
    mended(disk)
    assert read_tree(disk) == {
        name.removeprefix(b"root/"): content for name, content in before.items() if name != b"root"
    }
    assert is_clean(disk)
    assert mended(disk) == []


def test_more_names_than_are_moved_are_left_and_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("banger.storage.inspect.MOVED_MAX", 8191)
    disk = make_disk(tmp_path / "work.ext4", HOME | NESTED)
    before = digest(disk)
    assert ["too many names" in note for note in mended(disk)] == [True]
    assert digest(disk) == before


def _random_tree(chance: random.Random) -> tuple[Tree, Tree]:
    """What lies at the top, and below `root`."""
    names = [*ODD_NAMES, ".bashrc", ".profile", ".cache", ".config", "root", "a", "b", "c", "lost+found"]
    names += [f"a.nested-{TODAY}", f".cache.nested-{TODAY}", f".cache.nested-{TODAY}-2"]

    def grow(depth: int, names: list[str]) -> Tree:
        tree: Tree = {}
        for name in chance.sample(names, chance.randrange(min(9, len(names)))):
            kind = chance.random()
            if kind < 0.25 and depth:
                tree[name] = None
                tree |= {f"{name}/{below}": content for below, content in grow(depth - 1, names).items()}
            elif kind < 0.35:
                tree[name] = f"-> {chance.choice(['a', '/etc/passwd', '../..'])}"
            else:
                tree[name] = chance.randbytes(chance.choice([0, 1, 100, 5000]))
        return tree

    top = grow(2, [name for name in names if name not in ("root", ".profile", "lost+found")])
    nested = grow(3, [name for name in names if name != ".profile"])
    return top, nested | {".profile": b"a home"}


def _expected(top: dict[bytes, bytes | None], taken: set[bytes]) -> dict[bytes, bytes | None]:
    """What is at the top afterwards, of all that was there; by the rule, written another way."""
    nested = {name.removeprefix(b"root/"): content for name, content in top.items() if name.startswith(b"root/")}
    new_names: dict[bytes, bytes] = {}
    firsts = {name.split(b"/")[0] for name in nested}
    for name in firsts & taken:
        ending = f".nested-{TODAY}".encode()
        number = 1
        while True:
            more = ending + (f"-{number}".encode() if number > 1 else b"")
            short = name[: 255 - len(more)]
            if len(short) < len(name) and name.decode(errors="replace").encode() == name:
                short = short.decode(errors="ignore").encode()
            if short + more not in firsts | taken | set(new_names.values()):
                break
            number += 1
        new_names[name] = short + more
    return {
        b"/".join([new_names.get(name.split(b"/")[0], name.split(b"/")[0]), *name.split(b"/")[1:]]): content
        for name, content in nested.items()
    }


@pytest.mark.parametrize("seed", range(8))
def test_nothing_is_lost_whatever_the_trees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    monkeypatch.setattr("banger.storage.repair.sync_path", lambda path: None)  # half of the time
    for number in range(TREES // 8):
        chance = random.Random(seed * 1000 + number)
        top, nested = _random_tree(chance)
        disk = make_disk(
            tmp_path / f"{number}.ext4", top | {f"root/{name}": content for name, content in nested.items()}
        )
        before = read_tree(disk)
        stays = {name: content for name, content in before.items() if name.split(b"/")[0] != b"root"}
        mended(disk)
        found = read_tree(disk)
        wanted = stays | _expected(before, {name.split(b"/")[0] for name in stays})
        added = {b".ssh", b".ssh/authorized_keys", b".bashrc", b".profile"} - set(wanted)
        assert {name: content for name, content in found.items() if name not in added} == wanted
        assert is_clean(disk)
        assert mended(disk) == []
        disk.unlink()


def test_the_names_that_things_are_kept_under() -> None:
    day = "2025-01-31"
    assert dated(b"a", "nested", day, set()) == b"a.nested-2025-01-31"
    assert dated(b"a", "nested", day, {b"a.nested-2025-01-31"}) == b"a.nested-2025-01-31-2"
    assert len(dated(b"x" * 255, "nested", day, set())) == 255
    assert dated("ä".encode() * 127, "nested", day, set()).decode() == "ä" * 118 + ".nested-2025-01-31"


def test_a_kept_name_is_never_one_that_something_else_has() -> None:
    top = [Entry(b".", 2, 2), Entry(b"..", 2, 2), Entry(b"root", 12, 2), Entry(b"a", 13, 1)]
    below = [
        Entry(b".", 12, 2),
        Entry(b"..", 2, 2),
        Entry(b"a", 14, 1),
        Entry(b"a.nested-2025-01-31", 15, 1),
        Entry(b"root", 16, 2),
    ]
    moved = merge(top, below, "2025-01-31")
    assert [(entry.name, entry.inode) for entry in moved.entries] == [
        (b".", 2), (b"..", 2), (b"a", 13), (b"a.nested-2025-01-31-2", 14), (b"a.nested-2025-01-31", 15), (b"root", 16)
    ]  # fmt: skip
