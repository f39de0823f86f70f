"""Archives that are what they should be, and ones that were cut short or changed on their way."""

import contextlib
import random
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from banger.images.archive_manifest import FILES as NAMES
from banger.images.archive_manifest import MANIFEST
from banger.model.errors import Invalid
from banger.system.files import sha256_of
from banger.system.sparse_tar import BLOCK, Member, Runs, header, read_member
from tests.unit.images.archives import image_of, packed, parts_in, read, sparse

needs_tar = pytest.mark.skipif(shutil.which("zstd") is None, reason="zstd is not installed")


def same(path: Path, original: Path) -> bool:
    """In content, size, and what it takes on the disk."""
    there, here = path.stat(), original.stat()
    return sha256_of(path) == sha256_of(original) and (there.st_size, there.st_blocks) == (here.st_size, here.st_blocks)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    made = tmp_path / "out"
    made.mkdir()
    return made


def test_what_is_read_is_what_was_packed_and_holes_are_holes(tmp_path: Path, out: Path) -> None:
    files = parts_in(tmp_path / "parts")
    archive = packed(files)
    assert archive == packed(files), "the same image makes the same archive"
    manifest = read(archive, out)
    assert sorted(path.name for path in out.iterdir()) == sorted(NAMES[role] for role in files)
    for role, original in files.items():
        assert same(out / NAMES[role], original), role
    assert manifest.image.name == "tiny"
    read(archive)


@needs_tar
def test_gnu_tar_unpacks_the_same_files(tmp_path: Path, out: Path) -> None:
    files = parts_in(tmp_path / "parts")
    (tmp_path / "a").write_bytes(packed(files))
    done = subprocess.run(["tar", "--zstd", "-xf", tmp_path / "a", "-C", out], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert {path.name for path in out.iterdir()} == {MANIFEST, *(NAMES[role] for role in files)}
    for role, original in files.items():
        assert same(out / NAMES[role], original), role


@needs_tar
def test_what_gnu_tar_packs_again_is_read(tmp_path: Path, out: Path) -> None:
    files = parts_in(tmp_path / "parts")
    (tmp_path / "a").write_bytes(packed(files))
    again = tmp_path / "again"
    again.mkdir()
    subprocess.run(["tar", "--zstd", "-xf", tmp_path / "a", "-C", again], check=True)
    names = [MANIFEST, *sorted(path.name for path in again.iterdir() if path.name != MANIFEST)]
    pax = ["--zstd", "--sparse", "--format=posix", "--hole-detection=seek"]
    subprocess.run(["tar", *pax, "-cf", tmp_path / "b", "-C", again, *names], check=True)
    read(tmp_path / "b", out)
    for role, original in files.items():
        assert same(out / NAMES[role], original), role


def test_a_file_in_too_many_pieces_is_packed_with_its_smallest_holes(
    tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("banger.images.archive_writer.RUNS_MAX", 50)
    files = parts_in(tmp_path / "parts")
    files["root"] = sparse(tmp_path / "many", 80 << 20, {n * 8192: b"x" for n in range(60)} | {70 << 20: b"y"})
    read(packed(files), out)
    made = out / NAMES["root"]
    assert sha256_of(made) == sha256_of(files["root"])
    assert made.stat().st_blocks * 512 < 2 << 20, "the large hole is a hole"


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 1 << 40), st.integers(0, 1 << 34)), max_size=40), st.integers(0, 1 << 40))
def test_headers_say_what_they_were_told(pieces: list[tuple[int, int]], rest: int) -> None:
    runs: Runs = []
    at = 0
    for gap, length in pieces:
        runs.append((at + gap, length))
        at += gap + length
    member = Member("root.ext4", at + rest, runs)
    raw = header(member, 1_000_000_000)
    assert len(raw) % BLOCK == 0
    taken = [0]

    def exactly(count: int) -> bytes:
        taken[0] += count
        return raw[taken[0] - count : taken[0]]

    found = read_member(exactly)
    assert found is not None
    assert taken[0] == len(raw)
    assert (found.name, found.size, found.stored) == (member.name, member.size, member.stored)
    assert [run for run in found.runs if run[1]] == [run for run in runs if run[1]]


def test_a_file_that_changed_since_is_not_packed(tmp_path: Path) -> None:
    files = parts_in(tmp_path / "parts")
    image = image_of(files)
    with files["kernel"].open("r+b") as file:
        file.write(b"X")
    with pytest.raises(Invalid, match="kernel is not what it was"):
        packed(files, image)
    files["kernel"].write_bytes(b"short")
    with pytest.raises(Invalid, match="kernel is not what it was"):
        packed(files, image)


def test_an_archive_that_is_cut_short_anywhere_is_refused_and_says_where(tmp_path: Path) -> None:
    archive = packed(parts_in(tmp_path / "parts"))
    dice = random.Random(6)
    some = {dice.randrange(len(archive)) for _ in range(300)}
    for length in {*range(40), *range(len(archive) - 40, len(archive)), *some}:
        with pytest.raises(Invalid, match=rf"cut short: it ends after {length} bytes, in ") as caught:
            read(archive[:length])
        assert caught.value.hint
    noisy = parts_in(tmp_path / "noisy")
    sparse(noisy["root"], 1 << 20, {0: dice.randbytes(1 << 20)})
    with pytest.raises(Invalid, match=r"root\.ext4, and \d+ of 1048576 bytes of it are there"):
        read(packed(noisy)[: 600 << 10])


def test_a_changed_bit_is_found_or_changes_nothing(tmp_path: Path, out: Path) -> None:
    """A bit may mean nothing, such as one of the size of the window; then all is as it was."""
    archive = packed(parts_in(tmp_path / "parts"))
    dice = random.Random(7)
    quiet = 0
    some = {dice.randrange(len(archive)) for _ in range(500)}
    for at in {*range(60), *some, *range(len(archive) - 12, len(archive))}:
        changed = bytearray(archive)
        changed[at] ^= 1 << dice.randrange(8)
        with contextlib.suppress(Invalid):
            assert read(bytes(changed)) == read(archive)
            quiet += 1
    assert quiet < 5


def test_a_part_whose_content_was_changed_is_named(tmp_path: Path, out: Path) -> None:
    files = parts_in(tmp_path / "parts")
    noise = random.Random(8).randbytes(1 << 20)
    sparse(files["root"], 1 << 20, {0: noise})
    archive = bytearray(packed(files))
    archive[len(archive) // 2] ^= 4  # what cannot be compressed is stored as it is
    with pytest.raises(Invalid, match=r"the digest of root\.ext4 is wrong"):
        read(bytes(archive), out)
    assert "root.ext4" not in {path.name for path in out.iterdir()}


def test_what_is_there_already_is_passed_over(tmp_path: Path, out: Path) -> None:
    files = parts_in(tmp_path / "parts")
    (out / NAMES["kernel"]).write_bytes(b"kept")
    read(packed(files), out, kept={NAMES["kernel"]})
    assert (out / NAMES["kernel"]).read_bytes() == b"kept"
    assert same(out / NAMES["root"], files["root"])
