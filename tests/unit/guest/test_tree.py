"""Trees as tar streams: what goes in comes out; the format is everybody's; a hostile archive leaves nothing outside."""

import errno
import io
import os
import shutil
import socket
import stat
import subprocess
import tarfile
import tempfile
import tracemalloc
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from banger.guest import tree
from banger.guest.tree import packing
from tests.support import leaks

MIB = 1 << 20
END = bytes(1024)


def packed(path: Path | str, *, contents: bool = False) -> tuple[bytes, tree.Report]:
    out = io.BytesIO()
    report = tree.pack(os.fsencode(path), out.write, contents=contents)
    return out.getvalue(), report


def unpacked(archive: bytes, target: Path | str, *, contents: bool = False, **options: object) -> tree.Report:
    read = io.BytesIO(archive).read
    return tree.unpack(read, os.fsencode(target), contents=contents, **options)  # type: ignore[arg-type]


def look(top: Path) -> dict[bytes, tuple[object, ...]]:
    """Everything a person could see of a tree: type and mode, time, content or target, and which names are one file."""
    found: dict[bytes, tuple[object, ...]] = {}
    first: dict[int, bytes] = {}
    for path in [top, *sorted(top.rglob("*"))]:
        status = path.lstat()
        inner = os.fsencode(path.relative_to(top))
        content, one = b"", inner
        if path.is_symlink():
            content = os.fsencode(path.readlink())
        elif path.is_file():
            content, one = path.read_bytes(), first.setdefault(status.st_ino, inner)
        found[inner] = (status.st_mode, status.st_mtime_ns, content, one)
    return found


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A tree with one of everything."""
    top = tmp_path / "top"
    (top / "empty" / "inner").mkdir(parents=True)
    (top / "file").write_bytes(os.urandom(70_001))
    (top / "none").write_bytes(b"")
    os.link(top / "file", top / "empty" / "hard")
    (top / "link").symlink_to("empty/../file")
    (top / "dangling").symlink_to("/nowhere/at/all")
    (top / ("long" * 40)).write_text("a name of 160 bytes")
    (top / ("\N{GREEK SMALL LETTER MU}" * 127)).write_text("254 bytes")
    (top / "line\nbreak").write_text("x")
    Path(os.fsdecode(os.fsencode(top) + b"/\xff\xfe")).write_text("no UTF-8")
    deep = top.joinpath(*["d" * 100] * 4)
    deep.mkdir(parents=True)
    (deep / "leaf").write_text("a path of more than 400 bytes")
    (deep / "link").symlink_to("t" * 300)
    with (top / "sparse").open("wb") as file:
        file.seek(3 * MIB)
        file.write(b"middle" * 1000)
        file.truncate(64 * MIB)
    (top / "file").chmod(0o4751)
    (top / "none").chmod(0o000)
    (top / "empty").chmod(0o1777)
    os.utime(top / "none", ns=(1, 1_500_000_000))
    os.utime(top / "link", ns=(1, 1_234_567_891_123_456_789), follow_symlinks=False)
    os.utime(top / "empty" / "inner", ns=(1, 981_173_106_000_000_001))
    return top


def test_what_goes_in_comes_out(source: Path, tmp_path: Path) -> None:
    archive, report = packed(source)
    assert report.skipped_lines() == []
    (tmp_path / "out").mkdir()
    done = unpacked(archive, tmp_path / "out", owner=tree.KEEP)
    assert look(tmp_path / "out" / "top") == look(source)
    assert (done.entries, done.bytes, done.skipped_lines()) == (report.entries, report.bytes, [])
    assert (tmp_path / "out" / "top" / "sparse").stat().st_blocks * 512 < MIB


def test_without_owners_the_dangerous_bits_are_dropped(source: Path, tmp_path: Path) -> None:
    unpacked(packed(source)[0], tmp_path / "new")
    assert stat.S_IMODE((tmp_path / "new" / "file").stat().st_mode) == 0o751
    assert stat.S_IMODE((tmp_path / "new" / "empty").stat().st_mode) == 0o1777


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_owners_are_kept_or_given(source: Path, tmp_path: Path) -> None:
    for path in (source / "file", source / "link", source / "empty"):
        os.lchown(path, 3_000_000_001, 70_001)
    archive, _ = packed(source)
    unpacked(archive, tmp_path / "kept", owner=tree.KEEP)
    unpacked(archive, tmp_path / "given", owner=tree.Owner(1234, 5678))
    for name in ("file", "link", "empty"):
        kept, given_ = (tmp_path / "kept" / name).lstat(), (tmp_path / "given" / name).lstat()
        assert (kept.st_uid, kept.st_gid) == (3_000_000_001, 70_001)
        assert (given_.st_uid, given_.st_gid) == (1234, 5678)


@pytest.mark.parametrize("reader", ["tar", "tarfile"])
def test_others_read_what_we_write(source: Path, tmp_path: Path, reader: str) -> None:
    Path(os.fsdecode(os.fsencode(source) + b"/\xff\xfe")).unlink()  # GNU tar does not know hdrcharset
    archive, _ = packed(source)
    out = tmp_path / "out"
    out.mkdir()
    if reader == "tar":
        done = subprocess.run(["tar", "xpC", str(out), "--delay-directory-restore"], input=archive, capture_output=True)
        assert (done.returncode, done.stderr) == (0, b"")
        assert (out / "top" / "sparse").stat().st_blocks * 512 < MIB
        assert look(out / "top") == look(source)
        return
    with tarfile.open(fileobj=io.BytesIO(archive)) as opened:
        for member in opened:
            if member.isfile():
                extracted = opened.extractfile(member)
                assert extracted is not None
                assert extracted.read() == (source.parent / member.name).read_bytes()


@pytest.mark.parametrize("options", ["--format=gnu -S", "--format=pax -S", "--format=oldgnu", "--format=gnu -b 2048"])
def test_we_read_what_tar_writes(source: Path, tmp_path: Path, options: str) -> None:
    command = ["tar", "cC", str(source), *options.split(), "."]
    archive = subprocess.run(command, capture_output=True, check=True).stdout
    unpacked(archive, tmp_path / "a" / "b", contents=True, owner=tree.KEEP)

    def whole_seconds(top: Path) -> dict[bytes, tuple[object, ...]]:
        return {name: (mode, int(str(ns)) // 10**9, *rest) for name, (mode, ns, *rest) in look(top).items()}

    assert whole_seconds(tmp_path / "a" / "b") == whole_seconds(source)


def test_we_read_what_tarfile_writes(tmp_path: Path) -> None:
    unpacked(archive_of(("p" * 90 + "/" + "n" * 90, b"abc", {}), form=0), tmp_path, contents=True)
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT, pax_headers={"comment": "for all"}) as archive:
        info = tarfile.TarInfo("other")
        info.size, info.mtime = 3, 1.5
        archive.addfile(info, io.BytesIO(b"def"))
    unpacked(out.getvalue(), tmp_path, contents=True)
    assert (tmp_path / ("p" * 90) / ("n" * 90)).read_bytes() == b"abc"
    assert (tmp_path / "other").read_bytes() == b"def"
    assert (tmp_path / "other").stat().st_mtime == 1.5


names = st.binary(min_size=1, max_size=255).filter(lambda name: not {0, 0x2F} & set(name) and name not in (b".", b".."))


@settings(max_examples=30, deadline=None)
@given(st.lists(names, min_size=1, max_size=4), st.binary(max_size=2000), st.integers(-(2**33), 2**33))
def test_any_name_survives(
    tmp_path_factory: pytest.TempPathFactory, parts: list[bytes], data: bytes, when: int
) -> None:
    top = tmp_path_factory.mktemp("names")
    try:
        file = top.joinpath("top", *(os.fsdecode(part) for part in parts))
        file.parent.mkdir(parents=True)
        file.write_bytes(data)
        os.utime(file, ns=(when, when))
        archive, report = packed(top / "top")
        assert not report.skipped_lines()
        with tarfile.open(fileobj=io.BytesIO(archive), errors="surrogateescape") as opened:
            assert os.fsencode(opened.getnames()[-1]) == b"/".join((b"top", *parts))
        unpacked(archive, top / "out")
        assert look(top / "out") == look(top / "top")
    finally:
        shutil.rmtree(top)


# where things land


def test_a_file_lands_as_cp_would_put_it(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("new")
    archive, _ = packed(tmp_path / "a")
    (tmp_path / "dir").mkdir()
    (tmp_path / "old").write_text("old")
    (tmp_path / "link").symlink_to("dir")
    unpacked(archive, tmp_path / "b")
    unpacked(archive, tmp_path / "old")
    unpacked(archive, tmp_path / "dir")
    unpacked(archive, tmp_path / "link", name=b"named")
    for place in ("b", "old", "dir/a", "dir/named"):
        assert (tmp_path / place).read_text() == "new"
    for wrong, number in (
        ("no/b", errno.ENOENT),
        ("b/c", errno.ENOTDIR),
        ("new/", errno.ENOENT),
        ("b/", errno.ENOTDIR),
    ):
        with pytest.raises(tree.TreeError) as caught:
            unpacked(archive, f"{tmp_path}/{wrong}")
        assert caught.value.errno == number
        assert str(tmp_path) in caught.value.text


def test_a_directory_lands_as_cp_would_put_it(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "f").write_text("x")
    archive, _ = packed(f"{tmp_path}/src/")
    (tmp_path / "there").mkdir()
    unpacked(archive, tmp_path / "there")
    unpacked(archive, tmp_path / "renamed")
    unpacked(archive, f"{tmp_path}/slash/")
    for place in ("there/src/f", "renamed/f", "slash/f"):
        assert (tmp_path / place).read_text() == "x"
    unpacked(packed(tmp_path / "src", contents=True)[0], tmp_path / "x" / "y", contents=True)
    assert (tmp_path / "x" / "y" / "f").read_text() == "x"


def test_merging_replaces_files_and_keeps_directories(tmp_path: Path) -> None:
    (tmp_path / "src" / "sub").mkdir(parents=True)
    (tmp_path / "src" / "sub" / "f").write_text("new")
    (tmp_path / "out" / "sub").mkdir(parents=True)
    (tmp_path / "out" / "sub").chmod(0o700)
    (tmp_path / "out" / "sub" / "other").write_text("stays")
    kept = tmp_path / "kept"
    kept.write_text("old")
    os.link(kept, tmp_path / "out" / "sub" / "f")
    archive, _ = packed(tmp_path / "src", contents=True)
    for _ in range(2):
        unpacked(archive, tmp_path / "out", contents=True)
    assert (tmp_path / "out" / "sub" / "f").read_text() == "new"
    assert kept.read_text() == "old"  # another name of the file that was replaced
    assert (tmp_path / "out" / "sub" / "other").read_text() == "stays"
    assert stat.S_IMODE((tmp_path / "out" / "sub").stat().st_mode) == 0o700


def test_what_is_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "src" / "a").mkdir(parents=True)
    (tmp_path / "src" / "b").write_text("file")
    for name, in_the_way in (("a", Path.touch), ("b", Path.mkdir)):
        out = tmp_path / f"out-{name}"
        out.mkdir()
        in_the_way(out / name)
        with pytest.raises(tree.TreeError, match=rf"\b{name}: .*in the way"):
            unpacked(packed(tmp_path / "src", contents=True)[0], out, contents=True)
        assert not [entry for entry in out.rglob("*") if entry.name.startswith(".banger")]


# what cannot be copied


def test_what_is_no_file_is_left_out_and_told(tmp_path: Path) -> None:
    top = tmp_path / "top"
    top.mkdir()
    (top / "file").write_text("x")
    os.mkfifo(top / "fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(top / "socket"))
    archive, report = packed(top)
    assert sorted(report.skipped_lines()) == ["top/fifo: a FIFO", "top/socket: a socket"]
    unpacked(archive, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["file"]


def test_the_lines_about_what_was_left_out_are_bounded(tmp_path: Path) -> None:
    (tmp_path / "top").mkdir()
    for number in range(50):
        os.mkfifo(tmp_path / "top" / f"{number}")
    lines = packed(tmp_path / "top")[1].skipped_lines()
    assert len(lines) == tree.SKIPPED_MAX
    assert lines[-1] == "and 31 more"


def test_what_may_not_be_read_is_left_out_and_told() -> None:
    me = os.geteuid()
    with tempfile.TemporaryDirectory(prefix=leaks.prefix()) as name:
        top = Path(name) / "top"
        (top / "closed").mkdir(parents=True)
        (top / "secret").write_text("x")
        for path in (top / "closed", top / "secret"):
            path.chmod(0)
        Path(name).chmod(0o755)
        if me == 0:  # root may read everything
            os.seteuid(65534)
        try:
            _, report = packed(top)
        finally:
            os.seteuid(me)
            (top / "closed").chmod(0o700)
    assert sorted(report.skipped_lines()) == ["top/closed: Permission denied", "top/secret: Permission denied"]
    assert report.entries == 2  # the two directories


def test_files_the_kernel_makes_up_come_whole_and_their_trees_are_left_out(tmp_path: Path) -> None:
    unpacked(packed("/proc/self/mountinfo")[0], tmp_path)
    assert (tmp_path / "mountinfo").read_bytes() == Path("/proc/self/mountinfo").read_bytes()
    assert packing._made_up(Path("/proc").stat().st_dev) == "proc"
    assert packing._made_up(tmp_path.stat().st_dev) == ""


@pytest.mark.parametrize(("change", "said"), [(-100_000, "shrank"), (100_000, "grew")])
def test_a_file_that_changes_while_it_is_read_does_not_break_the_stream(tmp_path: Path, change: int, said: str) -> None:
    (tmp_path / "top").mkdir()
    size = 300_000
    for name in ("a", "b"):
        (tmp_path / "top" / name).write_bytes(b"y" * size)
    out = io.BytesIO()
    changed: list[str] = []

    def write(data: bytes) -> None:
        out.write(data)
        if not changed and b"y" * 1000 in data:  # in the middle of the first file
            for name in ("a", "b"):
                os.truncate(tmp_path / "top" / name, size + change)
            changed.append("yes")

    report = tree.pack(os.fsencode(tmp_path / "top"), write)
    assert [line for line in report.skipped_lines() if said in line]
    unpacked(out.getvalue(), tmp_path / "out")
    sizes = sorted((tmp_path / "out" / name).stat().st_size for name in ("a", "b"))
    assert sizes == sorted([size, size + change])


def test_sparse_files_cost_neither_time_nor_memory(tmp_path: Path) -> None:
    with (tmp_path / "big").open("wb") as file:
        file.truncate(1 << 40)
        file.seek(1 << 39)
        file.write(b"x")
    tracemalloc.start()
    archive, report = packed(tmp_path / "big")
    unpacked(archive, tmp_path / "out")
    assert tracemalloc.get_traced_memory()[1] < 2 * MIB
    tracemalloc.stop()
    assert len(archive) < MIB
    assert report.bytes < MIB
    assert (tmp_path / "out").stat().st_size == 1 << 40
    assert (tmp_path / "out").stat().st_blocks * 512 < MIB


def test_a_path_that_is_not_there(tmp_path: Path) -> None:
    for path, number in ((tmp_path / "no", errno.ENOENT), ("/", errno.EINVAL)):
        with pytest.raises(tree.TreeError) as caught:
            packed(path)
        assert caught.value.errno == number


def test_directories_too_deep_are_told(tmp_path: Path) -> None:
    tmp_path.joinpath("top", *["d"] * 300).mkdir(parents=True)
    archive, report = packed(tmp_path / "top")
    assert "256" in report.skipped_lines()[0]
    unpacked(archive, tmp_path / "out")


# hostile archives

Entry = tuple[str, bytes, dict[str, object]]


def archive_of(*entries: Entry, form: Literal[0, 1, 2] = 2) -> bytes:
    """An archive of (name, data, fields of TarInfo), in ustar (0), GNU (1) or pax form (2)."""
    blocks = b""
    for name, data, fields in entries:
        info = tarfile.TarInfo(name)
        info.size = len(data)
        for field, value in fields.items():
            setattr(info, field, value)
        blocks += info.tobuf(form, "utf-8", "surrogateescape") + data + bytes(-len(data) % 512)
    return blocks + END


def made(kind: bytes, **fields: object) -> dict[str, object]:
    return {"type": kind, **fields}


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
