"""What `image import` was given, by its content."""

import io
import os
import tarfile
from pathlib import Path

import pytest

from banger.images.archive_kind import kind_of
from banger.model.errors import Invalid, NotFound


def tar(path: Path, *names: str, mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name in names:
            if name.endswith("/"):
                folder = tarfile.TarInfo(name)
                folder.type = tarfile.DIRTYPE
                archive.addfile(folder)
            else:
                content = name.encode() * 700
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return path


def test_the_kinds(tmp_path: Path) -> None:
    layout = tmp_path / "layout"
    layout.mkdir()
    (layout / "oci-layout").write_text("{}")
    assert kind_of(layout) == "oci"
    own = tmp_path / "own"
    own.write_bytes(b"\x28\xb5\x2f\xfd rest")
    assert kind_of(own) == "banger"
    assert kind_of(tar(tmp_path / "a", "oci-layout", "index.json", "blobs/sha256/ab")) == "oci"
    assert kind_of(tar(tmp_path / "b", "./blobs/", "./blobs/sha256/ab", "./index.json", "./oci-layout")) == "oci"
    assert kind_of(tar(tmp_path / "c", "abc/", "abc/layer.tar", "manifest.json", "repositories")) == "docker"
    assert kind_of(tar(tmp_path / "d", "blobs/x", "manifest.json", "index.json", "oci-layout")) == "oci"
    assert kind_of(tar(tmp_path / "e", "manifest.json", mode="w:gz")) == "docker"


def test_what_is_none_of_them_is_refused_with_what_would_be(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "empty").touch()
    (tmp_path / "noise").write_bytes(os.urandom(4096))
    files = [tar(tmp_path / "rootfs", "etc/", "etc/passwd"), *(tmp_path / name for name in ("fifo", "empty", "noise"))]
    for path in (tmp_path, *files):
        with pytest.raises(Invalid) as caught:
            kind_of(path)
        assert "image export" in caught.value.hint
    with pytest.raises(NotFound):
        kind_of(tmp_path / "nothing")
