"""Which image is meant, and documents that lie."""

import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest

from banger.images.oci_layout import MAX_LAYERS, choose, choose_saved
from banger.model.errors import Invalid, Unsupported
from banger.service.oci import default_name
from tests.support.oci import (
    Member,
    Picture,
    blob,
    digest,
    layer,
    manifest_of,
    write_docker_archive,
    write_layout,
)

LIMIT = 1 << 30
ONE, OTHER = Picture([layer(Member("a", b"a"))]), Picture([layer(Member("b", b"b"))])


def _choose(layout: Path, tag: str = "", limit: int = LIMIT) -> Any:
    return choose(layout, layout / "blobs", tag, limit)


def _put(layout: Path, document: dict[str, Any], media_type: str) -> dict[str, Any]:
    content = json.dumps(document).encode()
    blob(layout, digest(content)).write_bytes(content)
    return {"mediaType": media_type, "digest": digest(content), "size": len(content)}


def test_the_only_image_needs_no_tag(tmp_path: Path) -> None:
    digests = write_layout(tmp_path, ONE, tags=("",))
    assert _choose(tmp_path).digest == digests[""]


@pytest.mark.parametrize("tag", ["ghcr.io/me/b:2", "me/b:2", "b:2", "2"])
def test_one_of_several_is_chosen_by_its_tag_or_the_end_of_it(tmp_path: Path, tag: str) -> None:
    digests = write_layout(tmp_path, ONE, OTHER, tags=("a", "ghcr.io/me/b:2"))
    assert _choose(tmp_path, tag).digest == digests["ghcr.io/me/b:2"]


def test_one_of_several_is_chosen_by_its_digest(tmp_path: Path) -> None:
    digests = write_layout(tmp_path, ONE, OTHER, tags=("a", "b"))
    assert _choose(tmp_path, digests["b"]).name == "b"


@pytest.mark.parametrize(("tag", "said"), [("", "2 such images"), ("c", "no image c")])
def test_without_one_that_is_meant_the_tags_are_listed(tmp_path: Path, tag: str, said: str) -> None:
    write_layout(tmp_path, ONE, OTHER, tags=("a", "b"))
    with pytest.raises(Invalid, match=said) as caught:
        _choose(tmp_path, tag)
    assert "a, b" in caught.value.hint


@pytest.mark.parametrize(("architecture", "fits"), [("amd64", True), ("arm64", False)])
def test_of_an_image_for_several_platforms_ours_is_chosen(tmp_path: Path, architecture: str, fits: bool) -> None:
    wanted = write_layout(tmp_path, ONE)["latest"]
    first = json.loads((tmp_path / "index.json").read_text())["manifests"][0]
    inner = [
        {**first, "digest": digest(b"elsewhere"), "platform": {"os": "linux", "architecture": "s390x"}},
        {**first, "platform": {"os": "linux", "architecture": architecture}},
    ]
    index = _put(tmp_path, {"schemaVersion": 2, "manifests": inner}, "application/vnd.oci.image.index.v1+json")
    (tmp_path / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [index]}))
    if fits:
        assert _choose(tmp_path).digest == wanted
    else:
        with pytest.raises(Unsupported, match="linux/arm64, linux/s390x"):
            _choose(tmp_path)


def test_a_manifest_that_was_changed_is_refused(tmp_path: Path) -> None:
    path = blob(tmp_path, write_layout(tmp_path, ONE)["latest"])
    path.write_bytes(path.read_bytes().replace(b'"schemaVersion": 2', b'"schemaVersion":  2'))
    with pytest.raises(Invalid, match="another digest"):
        _choose(tmp_path)


def test_a_digest_is_never_a_path(tmp_path: Path) -> None:
    write_layout(tmp_path, ONE)
    index = json.loads((tmp_path / "index.json").read_text())
    index["manifests"][0]["digest"] = "sha256:../../index.json"
    (tmp_path / "index.json").write_text(json.dumps(index))
    with pytest.raises(Invalid, match="no SHA-256 digest"):
        _choose(tmp_path)


def test_claims_of_more_than_may_be_imported_are_refused_before_anything_is_read(tmp_path: Path) -> None:
    write_layout(tmp_path, Picture(ONE.layers, sizes=10**13))
    with pytest.raises(Invalid, match=r"9\.1 TiB") as caught:
        _choose(tmp_path)
    assert "--size" in caught.value.hint


@pytest.mark.parametrize("instead", ["nothing", "shorter", "link"])
def test_a_layer_that_is_no_file_of_the_size_that_it_should_have_is_refused(tmp_path: Path, instead: str) -> None:
    write_layout(tmp_path, ONE)
    path = blob(tmp_path, manifest_of(tmp_path)["layers"][0]["digest"])
    content = path.read_bytes()
    path.unlink()
    if instead == "shorter":
        path.write_bytes(content[:-1])
    elif instead == "link":
        path.symlink_to("/dev/zero")
    with pytest.raises(Invalid, match="missing" if instead == "nothing" else "no file of"):
        _choose(tmp_path)


def test_too_many_layers_are_refused(tmp_path: Path) -> None:
    write_layout(tmp_path, Picture([ONE.layers[0]] * (MAX_LAYERS + 1)))
    with pytest.raises(Invalid, match="layers"):
        _choose(tmp_path)


@pytest.mark.parametrize("content", [b"", b"[]", b'{"manifests": [{}]}', b"[" * 100_000, b'{"manifests": []}'])
def test_an_index_that_makes_no_sense_is_refused(tmp_path: Path, content: bytes) -> None:
    write_layout(tmp_path, ONE)
    (tmp_path / "index.json").write_bytes(content)
    with pytest.raises(Invalid):
        _choose(tmp_path)


def test_an_index_that_would_never_end_is_refused(tmp_path: Path) -> None:
    write_layout(tmp_path, ONE)
    (tmp_path / "index.json").unlink()
    os.mkfifo(tmp_path / "index.json")
    with pytest.raises(Invalid, match="no regular file"):
        _choose(tmp_path)
    (tmp_path / "index.json").unlink()
    with (tmp_path / "index.json").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(Invalid, match="more than"):
        _choose(tmp_path)


@pytest.mark.parametrize("tag", ["other:2", "2"])
def test_one_image_of_a_docker_archive_is_chosen(tmp_path: Path, tag: str) -> None:
    archive = write_docker_archive(tmp_path / "a.tar", ONE, OTHER, tags=("test:latest", "other:2"))
    chosen = choose_saved(archive, tag)
    assert (chosen.name, chosen.at, chosen.digest) == ("other:2", 1, digest(OTHER.config_bytes()))
    with pytest.raises(Invalid) as caught:
        choose_saved(archive, "")
    assert "test:latest, other:2" in caught.value.hint


def test_a_docker_archive_whose_configuration_was_changed_is_refused(tmp_path: Path) -> None:
    archive = write_docker_archive(tmp_path / "a.tar", ONE)
    archive.write_bytes(archive.read_bytes().replace(b"/srv", b"/srx"))
    with pytest.raises(Invalid, match="another digest"):
        choose_saved(archive, "")


def test_a_docker_archive_with_two_files_of_one_name_is_refused(tmp_path: Path) -> None:
    archive = write_docker_archive(tmp_path / "a.tar", ONE)
    with tarfile.open(archive, "a") as again:
        again.addfile(tarfile.TarInfo("manifest.json"), io.BytesIO())
    with pytest.raises(Invalid, match="twice"):
        choose_saved(archive, "")


@pytest.mark.parametrize("keep", [0.3, 0.6, 0.9])
def test_a_truncated_docker_archive_is_refused(tmp_path: Path, keep: float) -> None:
    archive = write_docker_archive(tmp_path / "a.tar", ONE)
    content = archive.read_bytes().rstrip(b"\0")
    archive.write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(Invalid):
        choose_saved(archive, "")


@pytest.mark.parametrize(
    ("path", "tag", "name"),
    [
        ("/x/tools.tar.gz", "", "tools"),
        ("/x/My_Tools.oci.tar", "", "my-tools"),
        ("/x/a.tar", "ghcr.io/me/tools:1.2", "tools-1-2"),
        ("/x/a.tar", "tools:latest", "tools"),
        ("/x/a.tar", "latest", "a"),
        ("/x/a.tar", f"sha256:{'0' * 64}", "a"),
        (f"/x/{'n' * 60}", "", "n" * 40),
    ],
)
def test_a_name_is_made_of_the_tag_or_the_file(path: str, tag: str, name: str) -> None:
    assert default_name(Path(path), tag) == name


def test_where_no_name_can_be_made_one_is_asked_for() -> None:
    with pytest.raises(Invalid) as caught:
        default_name(Path("/x/___.tar"), "")
    assert "--name" in caught.value.hint
