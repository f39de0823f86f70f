"""OCI layouts and docker archives, made in a few lines: right ones, and ones that lie."""

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

OCI = "application/vnd.oci.image"
CONFIG = {"Env": ["PATH=/opt/bin:/usr/bin", "GREETING=it's $HOME; `id`"], "Cmd": ["/bin/sh"], "WorkingDir": "/srv"}


@dataclass(frozen=True)
class Member:
    """One entry of a layer: content for a regular file, a target for a link, a type of tarfile's for the rest."""

    name: str
    content: bytes = b""
    target: str = ""
    kind: bytes = tarfile.REGTYPE
    mode: int = 0o644
    uid: int = 0

    def info(self) -> tarfile.TarInfo:
        info = tarfile.TarInfo(self.name)
        info.type, info.linkname, info.mode, info.uid = self.kind, self.target, self.mode, self.uid
        info.size = len(self.content)
        if self.kind == tarfile.CHRTYPE:
            info.devmajor, info.devminor = 1, 3
        return info


def folder(name: str, mode: int = 0o755) -> Member:
    return Member(name, kind=tarfile.DIRTYPE, mode=mode)


def symlink(name: str, target: str) -> Member:
    return Member(name, target=target, kind=tarfile.SYMTYPE)


def hard_link(name: str, target: str) -> Member:
    return Member(name, target=target, kind=tarfile.LNKTYPE)


def layer(*members: Member) -> bytes:
    """A layer's tar, not compressed."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for member in members:
            archive.addfile(member.info(), io.BytesIO(member.content))
    return out.getvalue()


def digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


@dataclass
class Picture:
    """An image: its layers as tars, lowest first, what its config says, and what a test changes of the truth."""

    layers: Sequence[bytes]
    config: dict[str, Any] = field(default_factory=lambda: dict(CONFIG))
    architecture: str = "amd64"
    diff_ids: Sequence[str] = ()
    compress: bool = True
    sizes: int = 0  # what every layer claims to have, when that is not the truth

    def config_bytes(self) -> bytes:
        document = {
            "architecture": self.architecture,
            "os": "linux",
            "config": self.config,
            "rootfs": {"type": "layers", "diff_ids": list(self.diff_ids) or [digest(one) for one in self.layers]},
        }
        return json.dumps(document).encode()


def write_layout(directory: Path, *pictures: Picture, tags: Sequence[str] = ("latest",)) -> dict[str, str]:
    """Write an OCI layout; the digests of the manifests, by tag."""
    blobs = directory / "blobs/sha256"
    blobs.mkdir(parents=True)

    def put(content: bytes, kind: str, size: int = 0) -> dict[str, Any]:
        name = digest(content)
        (blobs / name.removeprefix("sha256:")).write_bytes(content)
        return {"mediaType": f"{OCI}.{kind}", "digest": name, "size": size or len(content)}

    entries = []
    for picture, tag in zip(pictures, tags, strict=True):
        suffix, pack = ("+gzip", lambda raw: gzip.compress(raw, 1, mtime=0)) if picture.compress else ("", bytes)
        manifest = {
            "schemaVersion": 2,
            "mediaType": f"{OCI}.manifest.v1+json",
            "config": put(picture.config_bytes(), "config.v1+json"),
            "layers": [put(pack(raw), f"layer.v1.tar{suffix}", picture.sizes) for raw in picture.layers],
        }
        entry = put(json.dumps(manifest).encode(), "manifest.v1+json")
        entries.append({**entry, "annotations": {"org.opencontainers.image.ref.name": tag}} if tag else entry)
    (directory / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": entries}))
    (directory / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    return {tag: entry["digest"] for tag, entry in zip(tags, entries, strict=True)}


def blob(directory: Path, name: str) -> Path:
    """Where the blob with this digest lies in a layout."""
    return directory / "blobs" / name.replace(":", "/")


def manifest_of(directory: Path) -> dict[str, Any]:
    """The manifest of a layout's first image."""
    first = json.loads((directory / "index.json").read_text())["manifests"][0]["digest"]
    document: dict[str, Any] = json.loads(blob(directory, first).read_text())
    return document


def write_tar(target: Path, directory: Path) -> Path:
    """The directory's content as one tar, as `oci-archive` has it."""
    with tarfile.open(target, "w") as archive:
        for path in sorted(directory.rglob("*")):
            archive.add(path, path.relative_to(directory), recursive=False)
    return target


def write_docker_archive(target: Path, *pictures: Picture, tags: Sequence[str] = ("test:latest",)) -> Path:
    """What `docker save` writes."""
    entries = []
    with tarfile.open(target, "w") as archive:

        def put(name: str, content: bytes) -> str:
            if name in archive.getnames():
                return name
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
            return name

        for picture, tag in zip(pictures, tags, strict=True):
            config = picture.config_bytes()
            entries.append(
                {
                    "Config": put(f"{digest(config).removeprefix('sha256:')}.json", config),
                    "RepoTags": [tag],
                    "Layers": [put(f"{digest(raw).removeprefix('sha256:')}/layer.tar", raw) for raw in picture.layers],
                }
            )
        put("manifest.json", json.dumps(entries).encode())
    return target
