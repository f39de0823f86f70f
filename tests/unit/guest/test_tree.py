"""Trees as tar streams: what goes in comes out, and the format is everybody's."""

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

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from banger.guest import tree
from banger.guest.tree import packing
from tests.support import leaks
from tests.unit.guest.trees import MIB, archive_of, packed, unpacked


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
