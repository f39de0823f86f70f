"""Archives that nobody's export has written: each is refused, in bounded memory, and writes nothing outside."""

import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zstandard

from banger.images.archive_manifest import MANIFEST, Manifest, Packed, encode
from banger.model.errors import Invalid
from banger.model.image import ImagePart
from banger.system.sparse_tar import BLOCK, END, Member, header
from tests.unit.images.archives import FILES, LARGEST, SMALL, beginning, compressed, plain, read, simple, small, whole

GIB = 1 << 30
MEMORY_MAX = 24 << 20


def refused(archive: bytes, said: str, out: Path) -> None:
    """With these words, by which nothing is left but parts that were complete, and little memory was used."""
    tracemalloc.start()
    try:
        with pytest.raises(Invalid, match=said) as caught:
            read(archive, out)
        assert tracemalloc.get_traced_memory()[1] < MEMORY_MAX
    finally:
        tracemalloc.stop()
    assert caught.value.hint
    assert "\x1b" not in caught.value.message
    for role, name in FILES.items():
        assert not (out / name).exists() or (out / name).read_bytes() == SMALL[role]
    assert {path.name for path in out.iterdir()} <= set(FILES.values())


@pytest.fixture
def out(tmp_path: Path) -> Path:
    made = tmp_path / "deep" / "out"
    made.mkdir(parents=True)
    return made


def test_the_archive_that_the_others_differ_from_is_read(out: Path) -> None:
    read(whole(small()), out)
    assert {path.name for path in out.iterdir()} == {"vmlinux", "initramfs.cpio", "root.ext4"}


def strange(name: str, kind: bytes, **fields: Any) -> bytes:
    info = tarfile.TarInfo(name)
    info.type = kind
    for field, value in fields.items():
        setattr(info, field, value)
    return info.tobuf(tarfile.PAX_FORMAT)


@pytest.mark.parametrize(
    "member",
    [
        strange("vmlinux", tarfile.SYMTYPE, linkname="/etc/passwd"),
        strange("vmlinux", tarfile.LNKTYPE, linkname="banger-image.json"),
        strange("vmlinux", tarfile.CHRTYPE, devmajor=1, devminor=1),
        strange("vmlinux", tarfile.BLKTYPE, devmajor=8),
        strange("vmlinux", tarfile.FIFOTYPE),
        strange("vmlinux", tarfile.DIRTYPE),
        strange("vmlinux", tarfile.GNUTYPE_SPARSE),
        strange("vmlinux", tarfile.XGLTYPE),
        strange("vmlinux", tarfile.GNUTYPE_LONGNAME),
    ],
)
def test_only_plain_files_are_taken(member: bytes, out: Path) -> None:
    refused(whole(small(member)), "no plain file", out)


@pytest.mark.parametrize(
    "name",
    ["../escaped", "/tmp/escaped", "out/../../escaped", "vmlinux/x", "image.json", "./vmlinux", "a\x1b[2Jb", "x" * 300],
)
def test_names_are_compared_and_never_used(name: str, out: Path) -> None:
    refused(whole(small(plain(name, b"evil"))), "which is no part of it", out)
    assert {path.name for path in out.parent.iterdir()} == {"out"}
    assert not Path("/tmp/escaped").exists()


def test_each_part_comes_once(out: Path) -> None:
    twice = plain("vmlinux", SMALL["kernel"])
    refused(whole(small(twice)), "it holds vmlinux twice", out)
    for path in out.iterdir():
        path.unlink()
    refused(whole(small(without=["root"])), r"it holds no root\.ext4", out)


def test_what_comes_behind_the_end_is_refused(out: Path) -> None:
    sound = whole(small())
    for behind in (b"x", b"\0", sound):
        with pytest.raises(Invalid, match="something comes behind its end"):
            read(sound + behind)
    for behind in (b"x", bytes(BLOCK) + plain("vmlinux", b"more"), bytes(2 << 20)):
        with pytest.raises(Invalid, match="something comes behind its end"):
            read(compressed(small() + END + behind))
    read(compressed(small() + END + bytes(10240)))  # as tar fills its last record


def test_a_part_of_another_size_is_refused(out: Path) -> None:
    for data in (SMALL["kernel"] + b"k", SMALL["kernel"][:-1], b""):
        refused(whole(small(plain("vmlinux", data))), "vmlinux has another size", out)
    holes = header(Member("vmlinux", 600, [(0, 100)]), 0) + bytes(BLOCK)
    refused(whole(small(holes)), "vmlinux has another size", out)
    huge = header(Member("vmlinux", 1 << 61, []), 0)
    refused(whole(small(huge)), "vmlinux has another size", out)


def pax(records: bytes) -> bytes:
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, len(records)
    return info.tobuf() + records + bytes(-len(records) % BLOCK)


def mapped(table: bytes, **records: str) -> bytes:
    """A sparse file with this map."""
    info = tarfile.TarInfo("GNUSparseFile.0/vmlinux")
    table += bytes(-len(table) % BLOCK)
    info.size = len(table)
    told = {"major": "1", "minor": "0", "name": "vmlinux", "realsize": "600", **records}
    info.pax_headers = {f"GNU.sparse.{key}": value for key, value in told.items()}
    return info.tobuf(tarfile.PAX_FORMAT) + table


@pytest.mark.parametrize(
    ("member", "said"),
    [
        (pax(b"13 comment=x\n") * 2 + plain("vmlinux", SMALL["kernel"]), "no plain file"),
        (pax(b"13 comment=x\n") * 100_000, "no plain file"),
        (strange("x", tarfile.XHDTYPE, size=1 << 30), "pax header that is too long"),
        (pax(b"99999 a=b\n"), "malformed pax header"),
        (pax(b"-5 a=b\n"), "impossible number"),
        (pax(b"7 size=\n"), "malformed pax header"),
        (pax(b"30 size=99999999999999999999\n") + plain("vmlinux", b""), "impossible number|malformed"),
        (b"\xff" * BLOCK, "damaged header"),
        (b"\0" * BLOCK + b"x" * BLOCK, "block of zeros"),
        (mapped(b"1000000000\n0\n1\n"), "too many pieces"),
        (mapped(b"9" * 600 + b"\n"), "malformed map"),
        (mapped(b"2\n0\n600\n100\n10\n"), "contradicts its size"),
        (mapped(b"1\n0\n-4\n"), "impossible number"),
        (mapped(b"1\n500\n600\n"), "contradicts its size"),
        (mapped(b"1\n0\n600\n"), "contradicts its size"),
        (mapped(b"0\n", realsize="99999999999999999999"), "impossible number"),
        (mapped(b"0\n", major="0"), "old form"),
    ],
)
def test_headers_that_lie_are_refused(member: bytes, said: str, out: Path) -> None:
    refused(whole(small(member)), said, out)


def changed(manifest: Manifest, which: str, **fields: Any) -> Manifest:
    """A manifest that tells something else of one part, both times."""
    parts = [msgspec.structs.replace(part, **fields) if part.role == which else part for part in manifest.parts]
    image = {part.role: ImagePart(part.file, part.bytes, part.sha256) for part in parts}
    return Manifest(manifest.format, msgspec.structs.replace(manifest.image, parts=image), parts)


def of_image(**fields: Any) -> Callable[[Manifest], Manifest]:
    return lambda m: msgspec.structs.replace(m, image=msgspec.structs.replace(m.image, **fields))


def of_root(**fields: Any) -> Callable[[Manifest], Manifest]:
    return lambda m: changed(m, "root", **fields)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda m: msgspec.structs.replace(m, format=2), "its format is 2"),
        (of_image(format=99), r"image\.json has format 99"),
        (of_image(name="../x"), "not a valid image name"),
        (of_image(boot_args="root=/dev/vda rootfstype=ext4x"), "lack rootfstype=ext4"),
        (of_image(boot_args="rootfstype=ext4\ninit=/evil"), "not plain ASCII"),
        (of_image(boot_args="rootfstype=ext4 " * 1000), "too long"),
        (of_image(origin="\x1b[2J"), "origin"),
        (of_image(seed_key="SHA256:x"), "fingerprint"),
        (of_image(packages=-1), "packages"),
        (of_image(memory_mib=1 << 40), "memory_mib"),
        (of_image(created_at="yesterday"), "created_at"),
        (of_image(parts={}), "other parts"),
        (of_root(bytes=1 << 62, stored=0), "at most 64 GiB are taken"),
        (of_root(bytes=LARGEST), "at most 64 GiB are taken"),
        (of_root(bytes=0, stored=0), "said to have 0 bytes"),
        (of_root(stored=5001), "said to have"),
        (of_root(bytes=1 << 70), "said to have"),
        (of_root(file="../../etc/passwd"), r"\.\./\.\./etc/passwd"),
        (of_root(sha256="x"), "no digest"),
        (of_root(role="firmware"), "unknown kind"),
        (lambda m: changed(m, "kernel", bytes=2 * GIB), "said to have"),
        (lambda m: msgspec.structs.replace(m, parts=m.parts[:-1]), "has no root"),
        (lambda m: msgspec.structs.replace(m, parts=[*m.parts, m.parts[0]]), "a part twice"),
    ],
)
def test_what_a_manifest_says_is_looked_at(change: Callable[[Manifest], Manifest], said: str, out: Path) -> None:
    tar = beginning(change(simple(SMALL))) + small()[len(beginning(simple(SMALL))) :]
    refused(whole(tar), said, out)
    assert not list(out.iterdir())


@pytest.mark.parametrize(
    "raw", [b"", b"{}", b"[" * 100_000, b'{"format": "x"}', b"\xff\xfe", b'{"format": 1, "image": 7}']
)
def test_a_manifest_that_is_none_is_refused(raw: bytes, out: Path) -> None:
    refused(whole(plain(MANIFEST, raw)), "cannot be used", out)


def test_an_archive_begins_with_its_manifest(out: Path) -> None:
    document = encode(simple(SMALL))
    for first in (b"", plain("vmlinux", SMALL["kernel"]), plain(MANIFEST, document + b" " * (1 << 20))):
        refused(whole(first + small()), "begin with|something comes behind", out) if first else None
    holes = header(Member(MANIFEST, 1 << 19, [(0, 4), (4096, 4)]), 0)
    refused(whole(holes + small()), "begin with", out)
    refused(whole(b""), "begin with", out)


def frame(*blocks: bytes, window: int = 0x58) -> bytes:
    """A zstd frame (RFC 8878, 3.1.1) with a checksum of its own; `window` is its descriptor."""
    return b"\x28\xb5\x2f\xfd" + bytes([0x04, window]) + b"".join(blocks)


def block(kind: int, size: int, content: bytes, *, last: bool = False) -> bytes:
    return (size << 3 | kind << 1 | last).to_bytes(3, "little") + content


def stored(data: bytes) -> list[bytes]:
    """Data in blocks that are not compressed."""
    return [
        block(0, len(piece), piece) for start in range(0, len(data), 65536) if (piece := data[start : start + 65536])
    ]


def test_bombs_do_not_go_off(out: Path) -> None:
    begun = stored(small())
    zeros = block(1, 131072, b"\0")  # 4 bytes that are 128 KiB
    refused(frame(*begun, *stored(END), *[zeros] * 100_000), "something comes behind its end", out)
    for path in out.iterdir():
        path.unlink()
    refused(frame(*[block(0, 0, b"")] * 100_000), "nothing but empty blocks", out)
    refused(frame(*[zeros] * 100_000), "begin with", out)
    refused(frame(block(1, 2097151, b"\0")), "impossible block", out)
    refused(frame(block(3, 10, b"\0" * 10)), "impossible block", out)
    refused(frame(*begun, window=0xA8), "bytes of memory", out)
    refused(zstandard.ZstdCompressor(write_checksum=False).compress(small()), "no checksum", out)


def test_what_is_no_archive_at_all_is_said_to_be_none(out: Path) -> None:
    for data in (b"\x1f\x8b" * 100, b"PK" * 100, b"\0" * 100):
        refused(data, "not compressed by zstd", out)


def test_packed_parts_are_data_only() -> None:
    part = Packed("root", "root.ext4", 10, 5, "0" * 64)
    assert msgspec.json.decode(msgspec.json.encode(part), type=Packed) == part
