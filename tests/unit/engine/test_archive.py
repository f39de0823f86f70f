"""Archives that mean harm: nothing of them reaches the disk but two programs."""

import gzip
import io
import os
import subprocess
import tarfile
from pathlib import Path

import pytest

from banger.engine import archive as module
from banger.engine.archive import unpack
from banger.model.errors import Invalid
from tests.support.firecracker import archive, member, members, program, release, sha256

VERSION = "1.9.9"
BASE = f"release-v{VERSION}-x86_64"
NAME = f"{BASE}/firecracker-v{VERSION}-x86_64"
Parts = list[tuple[tarfile.TarInfo, bytes]]


@pytest.fixture
def room(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path


def unpacked(room: Path, content: bytes) -> dict[str, str]:
    (room / "archive.tgz").write_bytes(content)
    return unpack(room / "archive.tgz", VERSION, room / "out")


def test_two_programs_come_out_and_run(room: Path) -> None:
    digests = unpacked(room, release(VERSION))
    assert sorted(path.name for path in (room / "out").iterdir()) == ["firecracker", "jailer"]
    for name, says in (("firecracker", b"Firecracker v1.9.9"), ("jailer", b"Jailer v1.9.9")):
        path = room / "out" / name
        assert path.stat().st_mode & 0o7777 == 0o755
        assert digests[name] == sha256(path.read_bytes())
        done = subprocess.run([path, "--version"], capture_output=True, check=True)
        assert done.stdout.startswith(says)


def without(name: str) -> Parts:
    return [part for part in members(VERSION) if part[0].name != name]


HOSTILE: dict[str, tuple[Parts, str]] = {
    "a way out": ([*members(VERSION), member("../escaped", b"x")], "outside"),
    "a way out further down": ([*members(VERSION), member(f"{BASE}/../../escaped", b"x")], "outside"),
    "a link that leads out": (
        [*members(VERSION), member(f"{BASE}/link", b"", type=tarfile.SYMTYPE, linkname="../../etc")],
        "outside",
    ),
    "an absolute link": (
        [*members(VERSION), member(f"{BASE}/link", b"", type=tarfile.SYMTYPE, linkname="/etc/passwd")],
        "absolute",
    ),
    "a device": ([*members(VERSION), member(f"{BASE}/null", b"", type=tarfile.CHRTYPE)], "special file"),
    "a link in the program's place": (
        [*without(NAME), member(NAME, b"", type=tarfile.SYMTYPE, linkname="LICENSE")],
        "not one plain file",
    ),
    "a hard link in the program's place": (
        [*without(NAME), member(NAME, b"", type=tarfile.LNKTYPE, linkname=f"{BASE}/LICENSE")],
        "not one plain file",
    ),
    "a directory in the program's place": ([*without(NAME), member(NAME, b"", type=tarfile.DIRTYPE)], "plain file"),
    "the program twice": ([*members(VERSION), member(NAME, program("Firecracker v6.6.6"))], "not one plain file"),
    "no program": (without(NAME), "no firecracker"),
    "another version": (members("1.9.8"), "no firecracker and no jailer of version 1.9.9"),
    "an empty program": ([*without(NAME), member(NAME, b"")], "0 bytes"),
    "a script": ([*without(NAME), member(NAME, b"#!/bin/sh\n" + b"#" * 100)], "not a program for x86-64"),
    "another machine's program": ([*without(NAME), member(NAME, program("x", machine=183))], "not a program for"),
    "half a header": ([*without(NAME), member(NAME, program("x")[:40])], "not a program for"),
    "too many members": ([member(f"f{number}", b"") for number in range(1001)], "1000 members"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_archive_is_refused_and_nothing_lands_outside(room: Path, case: str) -> None:
    parts, said = HOSTILE[case]
    with pytest.raises(Invalid, match=said) as failure:
        unpacked(room, archive(parts))
    assert "the archive cannot be used" in failure.value.message
    assert failure.value.hint
    assert sorted(path.name for path in room.iterdir()) == ["archive.tgz", "out"]


def lying(size: int) -> bytes:
    """An archive whose program claims a size that it does not have."""
    info, content = member(NAME, program("Firecracker v1.9.9"))
    info.size = size
    return gzip.compress(info.tobuf() + content)


@pytest.mark.parametrize(("size", "said"), [(10**12, "1000000000000 bytes"), (60_000_000, "ends too early|unexpected")])
def test_a_member_that_lies_about_its_size_is_refused(room: Path, size: int, said: str) -> None:
    with pytest.raises(Invalid, match=said):
        unpacked(room, lying(size))


def test_an_archive_that_unpacks_without_end_is_not_followed(room: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "UNPACKED_MAX", 10_000_000)
    bomb = [member(f"{BASE}/bomb", bytes(20_000_000)), *members(VERSION)]
    with pytest.raises(Invalid, match="unpacks to more than 10000000"):
        unpacked(room, archive(bomb))


def test_a_header_without_end_is_not_read(room: Path) -> None:
    info = tarfile.TarInfo("@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 500_000_000
    with pytest.raises(Invalid, match="impossible size"):
        unpacked(room, gzip.compress(info.tobuf(tarfile.GNU_FORMAT) + bytes(10_000)))


@pytest.mark.parametrize("cut", [0, 1, 20, 300, -20])
def test_a_truncated_archive_is_refused(room: Path, cut: int) -> None:
    with pytest.raises(Invalid):
        unpacked(room, release(VERSION)[:cut])


def test_what_is_no_archive_is_refused(room: Path) -> None:
    for content in (b"<html>not found</html>" * 100, os.urandom(10_000), gzip.compress(os.urandom(10_000))):
        with pytest.raises(Invalid):
            unpacked(room, content)
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w") as tar:
        for info, content in members(VERSION):
            tar.addfile(info, io.BytesIO(content))
    with pytest.raises(Invalid):
        unpacked(room, plain.getvalue())
