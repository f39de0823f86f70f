"""Looking through an initramfs that somebody brings: what is in it is found, and what is hostile costs little."""

import gzip
import zlib
from pathlib import Path

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from banger.images import initrd, unpacked
from banger.images.initramfs import pack
from banger.images.initrd import Initramfs, read_initramfs
from banger.images.unpacked import BadInitramfs
from banger.model.image import INIT_VERSION
from tests.unit.images.cpios import archive, entry
from tests.unit.images.kernels import COMPRESSORS

DRIVERS = {"usr__lib__modules__6__virtio-blk_ko": b"\x7fELF", "usr__lib__modules__6__ext4_ko": b"x" * 3000}
THEIRS = archive(init=b"#!/bin/sh\nexec systemd\n", **DRIVERS)


def read(directory: Path, content: bytes) -> Initramfs:
    path = directory / "initrd"
    path.write_bytes(content)
    return read_initramfs(path)


@pytest.mark.parametrize("kind", ["", *COMPRESSORS])
def test_what_a_distribution_packs_is_looked_through(tmp_path: Path, kind: str) -> None:
    microcode = archive(kernel__x86__microcode__GenuineIntel=b"m" * 777)
    main = COMPRESSORS[kind](THEIRS) if kind else THEIRS
    found = read(tmp_path, microcode + bytes(512) + main)
    assert found == Initramfs(frozenset({"virtio_blk", "ext4"}), 4, 0)


def test_archives_behind_each_other_are_all_read(tmp_path: Path) -> None:
    more = archive(lib__modules__6__virtio_pci_ko=b"x")
    for first in (gzip.compress(THEIRS), COMPRESSORS["xz"](THEIRS), COMPRESSORS["zstd"](THEIRS)):
        found = read(tmp_path, first + bytes(4) + gzip.compress(more) + more)
        assert found.modules == {"virtio_blk", "ext4", "virtio_pci"}


def test_our_first_process_is_known_and_the_last_one_counts(tmp_path: Path) -> None:
    ours = pack(b"box", [("virtio_blk", b"\x7fELF")])
    assert read(tmp_path, ours) == Initramfs(frozenset({"virtio_blk"}), 11, INIT_VERSION)
    older = ours.replace(b"banger.work=", b"banger.nope=")
    assert read(tmp_path, older).init_version == 1
    assert read(tmp_path, older + ours).init_version == INIT_VERSION
    assert read(tmp_path, ours + THEIRS).init_version == 0


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "no archive"),
        (bytes(5000), "no archive"),
        (b"#!/bin/sh\n", "neither"),
        (b"\x89LZO\x00\r\n\x1a\n", "lzo"),
        (THEIRS[:200], "truncated"),
        (gzip.compress(THEIRS)[:-40], "truncated"),
        (gzip.compress(b"\x7fELF" * 100), "neither"),
        (COMPRESSORS["xz"](THEIRS)[:30] + bytes(100), "truncated|damaged"),
        (b"070701" + b"zz" * 52, "damaged"),
        (entry(b"a", 1 << 31, b"x"), "truncated"),
        (entry(b"a", 0, b"", length=1 << 30), "name of"),
        (entry(b"a", 0, b"", length=0), "name of"),
    ],
)
def test_what_is_none_is_refused_with_the_reason(tmp_path: Path, content: bytes, what: str) -> None:
    with pytest.raises(BadInitramfs, match=what):
        read(tmp_path, content)


def test_little_that_unpacks_to_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpacked, "MAX_BYTES", 1 << 23)
    big = entry(b"zeros", 1 << 24, bytes(1 << 24))
    for packed in (gzip.compress(big), zstandard.compress(big), *(compress(big) for compress in COMPRESSORS.values())):
        with pytest.raises(BadInitramfs, match="more than 8 MiB"):
            read(tmp_path, packed)


def test_compressed_within_compressed_has_an_end(tmp_path: Path) -> None:
    content = THEIRS
    for _ in range(6):
        content = zlib.compress(content, wbits=31)
    with pytest.raises(BadInitramfs, match="neither"):
        read(tmp_path, content)


def test_many_files_and_many_archives_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(initrd, "MAX_ENTRIES", 50)
    with pytest.raises(BadInitramfs, match="more than 50 files"):
        read(tmp_path, entry(b"a", 0, b"") * 60)
    monkeypatch.setattr(initrd, "_MAX_PIECES", 20)
    with pytest.raises(BadInitramfs, match="more than 20 archives"):
        read(tmp_path, archive(a=b"") * 30)


def test_a_caller_who_has_enough_ends_it(tmp_path: Path) -> None:
    def told(count: int) -> None:
        raise InterruptedError

    (tmp_path / "initrd").write_bytes(THEIRS)
    with pytest.raises(InterruptedError):
        read_initramfs(tmp_path / "initrd", told)


MAGICS = [magic for magic, _, _ in unpacked.COMPRESSIONS]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    start=st.sampled_from([b"", THEIRS, gzip.compress(THEIRS), b"070701", *MAGICS]),
    cut=st.integers(0, 4000),
    rest=st.lists(st.one_of(st.binary(max_size=64), st.sampled_from([*MAGICS, b"070701", bytes(7), THEIRS[:300]]))),
)
def test_whatever_bytes_come_are_read_or_refused(tmp_path: Path, start: bytes, cut: int, rest: list[bytes]) -> None:
    try:
        found = read(tmp_path, start[: max(cut, 6)] + b"".join(rest))
    except BadInitramfs:
        return
    assert found.entries < 1000


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, len(THEIRS) - 1), byte=st.integers(0, 255), kind=st.sampled_from(["", *COMPRESSORS]))
def test_one_byte_that_is_wrong_is_no_more_than_that(tmp_path: Path, at: int, byte: int, kind: str) -> None:
    content = bytearray(COMPRESSORS[kind](THEIRS) if kind else THEIRS)
    content[at % len(content)] = byte
    try:
        read(tmp_path, bytes(content))
    except BadInitramfs:
        return
