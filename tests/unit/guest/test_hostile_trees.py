"""Hostile, damaged and broken-off archives: an error, and nothing outside the target."""

import errno
import io
import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from banger.guest import tree
from tests.unit.guest.trees import END, MIB, Entry, archive_of, made, unpacked


def sparse(table: bytes, data: bytes, real: int = 4096) -> bytes:
    fields = {
        "GNU.sparse.major": "1",
        "GNU.sparse.minor": "0",
        "GNU.sparse.name": "x",
        "GNU.sparse.realsize": str(real),
    }
    return archive_of(("GNUSparseFile.0/x", table.ljust(512, b"\0") + data, {"pax_headers": fields}))


def raw_pax(records: bytes, after: bytes = b"") -> bytes:
    return archive_of(("pax", records, made(b"x")))[:-1024] + after + END


FILE = archive_of(("x", b"data", {}))
PLAIN = FILE[:-1024]


def hostile(outside: str) -> dict[str, bytes]:
    """Archives by what is wrong with them; `outside` is a directory that they try to reach."""
    return {
        "absolute": archive_of((f"{outside}/x", b"data", {})),
        "dots": archive_of(("../x", b"data", {})),
        "inner dots": archive_of(("a/../../x", b"data", {})),
        "dots in a directory": archive_of(("../new", b"", made(b"5"))),
        "through a link": archive_of(("l", b"", made(b"2", linkname=outside)), ("l/x", b"data", {})),
        "through a link, relative": archive_of(("l", b"", made(b"2", linkname="..")), ("l/x", b"data", {})),
        "through a link in a directory": archive_of(
            ("d", b"", made(b"5")), ("d/l", b"", made(b"2", linkname="../..")), ("d/l/x", b"data", {})
        ),
        "a directory over a link": archive_of(("l", b"", made(b"2", linkname=outside)), ("l", b"", made(b"5"))),
        "hard link outside": archive_of(("h", b"", made(b"1", linkname="../kept"))),
        "hard link, absolute": archive_of(("h", b"", made(b"1", linkname=f"{outside}/kept"))),
        "hard link to what was there": archive_of(("h", b"", made(b"1", linkname="mine"))),
        "hard link through a link": archive_of(
            ("l", b"", made(b"2", linkname=outside)), ("h", b"", made(b"1", linkname="l/kept"))
        ),
        "hard link to itself": archive_of(("h", b"", made(b"1", linkname="h"))),
        "link without a target": archive_of(("l", b"", made(b"2", linkname=""))),
        "link too long": archive_of(("l", b"", made(b"2", linkname="t" * 5000))),
        "name too long": archive_of(("n" * 256, b"", {})),
        "path too long": archive_of(("/".join(["n" * 200] * 30), b"", {})),
        "too deep": archive_of(("/".join("d" * 300), b"", {})),
        "a file as the top": archive_of((".", b"data", {})),
        "no name": archive_of(("", b"data", {})),
        "NUL in a name": raw_pax(b"12 path=a\0b\n", PLAIN),
        "empty": b"",
        "no entry": END,
        "garbage": os.urandom(4096),
        "text": b"<html>" * 1000,
        "compressed": b"\x1f\x8b" + bytes(2000),
        "cut in the header": FILE[:300],
        "cut in the data": FILE[:514],
        "no end": FILE[:1024],
        "half an end": FILE[:1536],
        "a damaged end": FILE[:1536] + b"x" * 512,
        "no end after the end": FILE + bytes(3 * MIB),
        "huge pax header": archive_of(("pax", b"", made(b"x", size=1 << 33))),
        "huge long name": archive_of(("././@LongLink", b"", made(b"L", size=1 << 33)), form=1),
        "huge size": archive_of(("x", b"", {"size": 1 << 62}))[:2048],
        "impossible size": archive_of(("x", b"", {"size": 1 << 70}), form=1),
        "impossible size in pax": raw_pax(b"13 size=-512\n", PLAIN),
        "impossible owner": raw_pax(b"18 uid=4294967295\n", PLAIN),
        "impossible time": raw_pax(b"13 mtime=nan\n", PLAIN),
        "pax without end": raw_pax(b"99 path=x\n", PLAIN),
        "pax of no length": raw_pax(b"0 path=x\n", PLAIN),
        "pax without a number": raw_pax(b"path=x\n", PLAIN),
        "pax without a value": raw_pax(b"7 path\n", PLAIN),
        "headers without end": archive_of(*[("pax", b"10 path=x\n", made(b"x"))] * 100),
        "global headers without end": archive_of(*[("pax", b"10 path=x\n", made(b"g"))] * 100),
        "headers before the end": raw_pax(b"10 path=x\n"),
        "sparse map too large": sparse(b"99999999\n0\n1\n", b""),
        "sparse map beyond the file": sparse(b"1\n4000\n512\n", bytes(512)),
        "sparse map more than the data": sparse(b"1\n0\n4096\n", bytes(512)),
        "sparse map less than the data": sparse(b"1\n0\n1\n", bytes(512)),
        "sparse map backwards": sparse(b"2\n512\n256\n0\n256\n", bytes(512)),
        "sparse map overlapping": sparse(b"2\n0\n256\n128\n256\n", bytes(512)),
        "sparse map negative": sparse(b"1\n-1\n512\n", bytes(512)),
        "sparse map of letters": sparse(b"one\n", bytes(512)),
        "sparse map without end": sparse(b"1" * 512, b"1" * 4096),
        "sparse map cut": sparse(b"4\n0\n", b""),
        "sparse size impossible": sparse(b"1\n0\n512\n", bytes(512), real=1 << 63),
        "sparse in an old form": archive_of(
            ("x", b"data", {"pax_headers": {"GNU.sparse.map": "0,4", "GNU.sparse.size": "4"}})
        ),
    }


def snapshot(folder: Path) -> dict[str, tuple[int, int, int, bytes]]:
    found = {}
    for path in folder.rglob("*"):
        status = path.lstat()
        content = path.read_bytes() if stat.S_ISREG(status.st_mode) else b""
        found[str(path)] = (status.st_mode, status.st_nlink, status.st_uid, content)
    return found


@pytest.mark.parametrize("owner", [tree.UNPACKER, tree.KEEP], ids=["own", "keep"])
@pytest.mark.parametrize("name", hostile("/"))
def test_a_hostile_archive_ends_in_an_error_and_leaves_nothing_outside(
    tmp_path: Path, name: str, owner: tree.Owner
) -> None:
    outside, target = tmp_path / "outside", tmp_path / "in" / "target"
    outside.mkdir()
    target.mkdir(parents=True)
    (outside / "kept").write_text("secret")
    (tmp_path / "in" / "kept").write_text("secret")
    (target / "mine").write_text("mine")
    before = snapshot(outside), snapshot(tmp_path / "in")
    with pytest.raises(tree.TreeError) as caught:
        unpacked(hostile(str(outside))[name], target, contents=True, owner=owner)
    assert caught.value.text.isprintable()
    after = snapshot(tmp_path / "in")
    assert snapshot(outside) == before[0]
    assert {path: state for path, state in after.items() if not path.startswith(str(target))} == {
        path: state for path, state in before[1].items() if not path.startswith(str(target))
    }
    assert (target / "mine").read_text() == "mine"
    assert not [path for path in after if ".banger-cp" in path]


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_a_damaged_archive_is_an_error_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    whole = archive_of(
        ("d", b"", made(b"5")),
        ("d/f", b"x" * 600, {"mtime": 1.5}),
        ("d/" + "n" * 120, b"y", {}),
        ("d/l", b"", made(b"2", linkname="f")),
        ("d/h", b"", made(b"1", linkname="d/f")),
    )
    broken = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(whole) - 1))
        broken[place] = data.draw(st.integers(0, 255))
        block = place - place % 512
        head = bytes(broken[block : block + 512])  # with its sum put right, should it be a header
        if data.draw(st.booleans()):
            broken[block + 148 : block + 156] = b"%06o\0 " % (sum(head) - sum(head[148:156]) + 256)
    top = tmp_path_factory.mktemp("damaged")
    try:
        (top / "target").mkdir()
        said: list[str] = []
        try:
            unpacked(bytes(broken), top / "target", contents=True)
        except tree.TreeError as error:
            said.append(error.text)
        assert "".join(said).isprintable()
        assert [path.name for path in top.iterdir()] == ["target"]
        assert not list(top.rglob(".banger-cp*"))
    finally:
        shutil.rmtree(top)


def test_devices_and_fifos_are_never_made(tmp_path: Path) -> None:
    kinds = {"c": b"3", "b": b"4", "p": b"6", "v": b"V"}
    entries: list[Entry] = [(name, b"", made(kind)) for name, kind in kinds.items()]
    report = unpacked(archive_of(*entries, ("x", b"data", {})), tmp_path, contents=True, owner=tree.KEEP)
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    assert report.skipped_lines() == ["c: a device", "b: a device", "p: a FIFO", "v: it is unknown"]


def test_the_name_of_what_was_asked_for_is_ours_to_choose(tmp_path: Path) -> None:
    unpacked(archive_of((".profile", b"data", {})), tmp_path, name=b"asked")
    assert [path.name for path in tmp_path.iterdir()] == ["asked"]
    with pytest.raises(tree.TreeError, match="more than the one"):
        unpacked(archive_of(("a", b"data", {}), (".profile", b"data", {})), tmp_path, name=b"asked")
    assert [path.name for path in tmp_path.iterdir()] == ["asked"]


@pytest.mark.parametrize("cut", [KeyboardInterrupt, RuntimeError])
def test_a_copy_that_breaks_off_leaves_whole_files_only(tmp_path: Path, cut: type[BaseException]) -> None:
    archive = archive_of(("d", b"", made(b"5", mode=0o750)), ("d/a", b"x" * 5000, {}), ("d/b", b"y" * 500_000, {}))
    stream = io.BytesIO(archive)

    def read(count: int) -> bytes:
        if stream.tell() > 200_000:
            raise cut
        return stream.read(count)

    with pytest.raises(cut):
        tree.unpack(read, os.fsencode(tmp_path), contents=True)
    assert [path.name for path in (tmp_path / "d").iterdir()] == ["a"]
    assert stat.S_IMODE((tmp_path / "d").stat().st_mode) == 0o750


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_a_full_disk_is_named(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", small], check=True)
    try:
        with pytest.raises(tree.TreeError) as caught:
            unpacked(archive_of(("x", bytes(2 * MIB), {})), small, contents=True)
        assert caught.value.errno == errno.ENOSPC
        assert not list(small.iterdir())
    finally:
        subprocess.run(["umount", small], check=True)
