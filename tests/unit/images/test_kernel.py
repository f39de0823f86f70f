import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from banger.images.kernel import BadKernel, extract_vmlinux, is_static, kernel_release, pvh_entry
from tests.unit.images.kernels import COMPRESSORS, bzimage, elf, payload


@pytest.mark.parametrize("kind", COMPRESSORS)
def test_each_compression_gives_back_the_same_vmlinux(kind: str) -> None:
    assert extract_vmlinux(bzimage(payload(kind, elf()))) == elf()


def test_a_vmlinux_is_taken_as_it_is() -> None:
    assert extract_vmlinux(elf()) == elf()


def test_the_release_is_read_from_the_setup_header() -> None:
    assert kernel_release(bzimage(payload("xz", elf()))) == "6.99.1-test"


def test_the_pvh_entry_is_found_and_its_absence_too() -> None:
    assert pvh_entry(elf()) == 0x1000100
    assert pvh_entry(elf(note=(b"GNU\0", 3, bytes(20)))) is None
    assert pvh_entry(elf(note=None)) is None


def test_a_note_that_lies_about_its_length_is_no_entry() -> None:
    damaged = elf().replace(struct.pack("<III", 4, 8, 18), struct.pack("<III", 4, 0x7FFFFFF0, 18))
    assert pvh_entry(damaged) is None


@pytest.mark.parametrize("kind", COMPRESSORS)
def test_truncated_and_tampered_payloads_are_refused(kind: str) -> None:
    packed = payload(kind, elf())
    with pytest.raises(BadKernel):
        extract_vmlinux(bzimage(packed)[:-20])
    with pytest.raises(BadKernel):
        extract_vmlinux(bzimage(packed[: len(packed) // 2] + packed[-4:]))
    with pytest.raises(BadKernel):
        extract_vmlinux(bzimage(payload(kind, b"MZ" + bytes(4000))))


@pytest.mark.parametrize("kind", [kind for kind in COMPRESSORS if kind != "gzip"])
def test_a_bomb_behind_a_modest_size_is_cut_off(kind: str) -> None:
    with pytest.raises(BadKernel, match="where its header says 100"):
        extract_vmlinux(bzimage(payload(kind, bytes(3_000_000), size=100)), limit=1000)


def test_a_kernel_above_the_limit_is_refused() -> None:
    with pytest.raises(BadKernel, match="more than 100"):
        extract_vmlinux(bzimage(payload("zstd", elf())), limit=100)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"MZ" + bytes(4096),
        bzimage(payload("xz", elf()), protocol=0x207),
        bzimage(b"\x89LZO" + bytes(64)),
        bzimage(b"unknown!" * 8),
        bzimage(payload("xz", elf(machine=183))),
        elf()[:60],
    ],
)
def test_what_is_no_kernel_of_ours_is_refused_with_a_next_step(data: bytes) -> None:
    with pytest.raises(BadKernel) as caught:
        extract_vmlinux(data)
    assert caught.value.hint


@given(st.integers(0, 1200), st.binary(min_size=1, max_size=8))
@settings(max_examples=100, deadline=None)
def test_no_damage_raises_anything_but_bad_kernel(at: int, noise: bytes) -> None:
    data = bytearray(bzimage(payload("lz4", elf())))
    data[at : at + len(noise)] = noise
    try:
        assert pvh_entry(extract_vmlinux(bytes(data))) in (None, 0x1000100) or at >= 1056
    except BadKernel:
        pass


def test_a_program_with_a_loader_is_not_static() -> None:
    interpreted = bytearray(elf(note=None))
    struct.pack_into("<I", interpreted, 64, 3)
    assert is_static(elf())
    assert not is_static(bytes(interpreted))
