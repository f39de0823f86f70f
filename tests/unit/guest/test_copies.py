"""Files and trees for a guest: their digest says when they are others, their archive holds what they hold."""

import io
import os
import tarfile
from pathlib import Path

import pytest

from banger.guest.copies import check_source, digest_tree, write_files, write_tree
from banger.model.errors import Invalid


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    (root / "sub").mkdir(parents=True)
    (root / "sub" / "run").write_bytes(b"#!/bin/sh\n")
    (root / "sub" / "run").chmod(0o750)
    (root / "empty").mkdir(mode=0o711)
    (root / "link").symlink_to("sub/run")
    (root / "away").symlink_to("/nowhere")
    return root


def members(source: Path, name: str = "") -> dict[str, tarfile.TarInfo]:
    out = io.BytesIO()
    write_tree(source, name, out)
    out.seek(0)
    with tarfile.open(fileobj=out) as archive:
        return {member.name: member for member in archive}


def test_a_tree_arrives_with_modes_and_links_and_as_roots(tree: Path) -> None:
    found = members(tree)
    assert sorted(found) == ["./away", "./empty", "./link", "./sub", "./sub/run"]
    assert (found["./sub/run"].mode, found["./sub/run"].size) == (0o750, 10)
    assert found["./empty"].mode == 0o711
    assert (found["./link"].linkname, found["./away"].linkname) == ("sub/run", "/nowhere")
    assert {(member.uid, member.gid) for member in found.values()} == {(0, 0)}


def test_a_file_arrives_under_the_name_that_it_shall_have(tree: Path) -> None:
    found = members(tree / "sub" / "run", "other")
    assert list(found) == ["other"]
    assert found["other"].mode == 0o750


def test_a_link_at_the_top_is_followed(tree: Path) -> None:
    assert members(tree / "link", "x")["x"].isreg()


def test_the_digest_is_the_same_whether_it_is_written_or_not_and_wherever_it_lies(tree: Path, tmp_path: Path) -> None:
    before = digest_tree(tree)
    assert before == write_tree(tree, "", io.BytesIO())
    moved = tree.rename(tmp_path / "moved")
    os.utime(moved / "sub" / "run", (1, 1))
    assert digest_tree(moved) == before
    assert before.bytes == 10


def _content(tree: Path) -> None:
    (tree / "sub" / "run").write_bytes(b"#!/bin/sX\n")


def _mode(tree: Path) -> None:
    (tree / "sub" / "run").chmod(0o700)


def _name(tree: Path) -> None:
    (tree / "empty").rename(tree / "emptier")


def _target(tree: Path) -> None:
    (tree / "link").unlink()
    (tree / "link").symlink_to("sub/ruN")


def _kind(tree: Path) -> None:
    (tree / "empty").rmdir()
    (tree / "empty").touch(0o711)


@pytest.mark.parametrize("change", [_content, _mode, _name, _target, _kind])
def test_every_change_is_another_digest(tree: Path, change: object) -> None:
    before = digest_tree(tree)
    assert callable(change)
    change(tree)
    assert digest_tree(tree).digest != before.digest


def test_what_is_no_file_is_refused(tree: Path) -> None:
    os.mkfifo(tree / "pipe")
    with pytest.raises(Invalid, match=r"pipe cannot be copied .* neither a file, a directory nor a link"):
        digest_tree(tree)
    with pytest.raises(Invalid, match="neither a file nor a directory"):
        check_source(tree / "pipe")
    with pytest.raises(Invalid, match="No such file"):
        check_source(tree / "missing")
    with pytest.raises(Invalid, match="No such file"):
        check_source(tree / "away")


def test_a_name_that_is_no_text_is_refused(tree: Path) -> None:
    Path(os.fsdecode(os.fsencode(tree) + b"/\xff")).touch()
    with pytest.raises(Invalid, match="no UTF-8"):
        digest_tree(tree)


def test_files_and_links_of_ours() -> None:
    out = io.BytesIO()
    write_files({"etc/a": (b"text", 0o600)}, {"etc/b": "/etc/a"}, out)
    out.seek(0)
    with tarfile.open(fileobj=out) as archive:
        first, second = archive.getmembers()
    assert (first.name, first.mode, first.size) == ("etc/a", 0o600, 4)
    assert (second.name, second.linkname) == ("etc/b", "/etc/a")
