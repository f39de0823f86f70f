"""Layers before they are unpacked: bounds, digests, names that lead out, device nodes."""

import gzip
import io
import tarfile
from pathlib import Path

import pytest

from banger.images.oci_layers import Surveyed, read_image, survey
from banger.model.errors import BangerError, Cancelled, Invalid, Unsupported
from tests.support.oci import (
    Member,
    Picture,
    blob,
    digest,
    folder,
    hard_link,
    layer,
    manifest_of,
    symlink,
    write_layout,
)

LIMIT = 1 << 20
BASE = layer(folder("etc"), Member("etc/a", b"a" * 5000), Member("etc/gone", b"g"), symlink("out", "/tmp/outside"))
TOP = layer(Member("etc/.wh.gone"), folder("opq"), Member("opq/.wh..wh..opq"), hard_link("etc/b", "etc/a"))


def _survey(layout: Path, limit: int = LIMIT) -> Surveyed:
    return survey(layout, limit, lambda _: None)


def _refused(layout: Path, *layers: bytes, limit: int = LIMIT) -> BangerError:
    write_layout(layout, Picture(layers))
    with pytest.raises(BangerError) as caught:
        _survey(layout, limit)
    return caught.value


@pytest.mark.parametrize("compress", [True, False])
def test_what_layers_hold_is_counted(tmp_path: Path, compress: bool) -> None:
    write_layout(tmp_path, Picture([BASE, TOP], compress=compress))
    # two blocks of 4 KiB for 5000 bytes, one for one byte
    assert _survey(tmp_path) == Surveyed(3 * 4096, 8, [])


@pytest.mark.parametrize(
    "member",
    [
        Member("../x", b"x"),
        Member("a/../../x", b"x"),
        Member("/../x", b"x"),
        folder("a/.."),
        hard_link("h", "../../etc/shadow"),
    ],
)
def test_names_that_lead_out_are_refused(tmp_path: Path, member: Member) -> None:
    error = _refused(tmp_path, BASE, layer(member))
    assert isinstance(error, Invalid)
    assert "leads out" in error.message


def test_more_than_is_allowed_is_refused(tmp_path: Path) -> None:
    error = _refused(tmp_path, layer(Member("zeros", bytes(LIMIT + 1))))
    assert "more than 1 MiB" in error.message


def test_many_layers_do_not_add_up_to_more_than_is_allowed(tmp_path: Path) -> None:
    error = _refused(tmp_path, *[layer(Member("zeros", bytes(LIMIT // 2)))] * 3)
    assert "more than 1 MiB" in error.message


def test_zeros_behind_the_end_count_as_well(tmp_path: Path) -> None:
    """They are in no file, and whoever unpacks has to read them all the same."""
    error = _refused(tmp_path, BASE + bytes(3 * LIMIT))
    assert "more than 2 MiB" in error.message


def test_a_header_that_claims_a_terabyte_is_refused_before_it_is_read(tmp_path: Path) -> None:
    header = tarfile.TarInfo("pax")
    header.type, header.size = tarfile.XHDTYPE, 1 << 40
    error = _refused(tmp_path, header.tobuf(tarfile.GNU_FORMAT) + bytes(10240))
    assert "impossible size" in error.message


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_SPARSE, b"Z"])
def test_kinds_of_files_that_no_image_has_are_refused(tmp_path: Path, kind: bytes) -> None:
    raw = bytearray(layer(Member("odd", b"")))
    raw[156:157] = kind
    raw[148:156] = b"%06o\0 " % sum((*raw[:148], *b" " * 8, *raw[156:512]))
    assert isinstance(_refused(tmp_path, bytes(raw)), Unsupported)


def test_a_sparse_file_in_extended_headers_is_refused(tmp_path: Path) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        info = Member("sparse").info()
        info.pax_headers = {"GNU.sparse.map": "0,0", "GNU.sparse.size": "1099511627776"}
        archive.addfile(info)
    assert isinstance(_refused(tmp_path, out.getvalue()), Unsupported)


def test_another_content_than_the_configuration_names_is_refused(tmp_path: Path) -> None:
    write_layout(tmp_path, Picture([BASE, TOP], diff_ids=[digest(BASE), digest(BASE)]))
    with pytest.raises(Invalid, match="layer 2 has another digest"):
        _survey(tmp_path)


def test_a_configuration_for_fewer_layers_is_refused(tmp_path: Path) -> None:
    write_layout(tmp_path, Picture([BASE, TOP], diff_ids=[digest(BASE)]))
    with pytest.raises(Invalid, match="another number of layers"):
        _survey(tmp_path)


@pytest.mark.parametrize("cut", [5, 30, 200])
def test_a_layer_that_ends_too_early_is_refused(tmp_path: Path, cut: int) -> None:
    write_layout(tmp_path, Picture([BASE]))
    path = blob(tmp_path, manifest_of(tmp_path)["layers"][0]["digest"])
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(Invalid, match="layer 1 is damaged"):
        _survey(tmp_path)


def test_device_nodes_are_taken_out_and_all_else_stays(tmp_path: Path) -> None:
    node = Member("dev/null", kind=tarfile.CHRTYPE)
    disk = Member("disk", kind=tarfile.BLKTYPE)
    long = Member(f"dev/{'n' * 120}", kind=tarfile.CHRTYPE)  # has a header of its own for its name
    write_layout(tmp_path, Picture([BASE, layer(folder("dev"), node, Member("a", b"a" * 700), long, disk)]))
    assert _survey(tmp_path).nodes == ["dev/null", long.name, "disk"]
    manifest, config = read_image(tmp_path)
    kept = blob(tmp_path, manifest.layers[1].digest).read_bytes()
    assert kept.rstrip(b"\0") == layer(folder("dev"), Member("a", b"a" * 700)).rstrip(b"\0")
    assert config.rootfs.diff_ids == [digest(BASE), digest(kept)]
    assert gzip.decompress(blob(tmp_path, manifest.layers[0].digest).read_bytes()) == BASE
    assert _survey(tmp_path).nodes == []


def test_a_cancelled_survey_ends(tmp_path: Path) -> None:
    write_layout(tmp_path, Picture([BASE]))

    def cancelled(_: int) -> None:
        raise Cancelled("not wanted")

    with pytest.raises(Cancelled):
        survey(tmp_path, LIMIT, cancelled)
