"""Images as earlier versions of banger have left them: what their image.json says, over files of a few bytes."""

import asyncio
from collections.abc import Mapping
from typing import Any

import msgspec

from banger.images.catalog import measure_parts, publish, workspace
from banger.images.initramfs import pack
from banger.model.image import INIT_VERSION, WORK_SEED, Image
from banger.paths import ImagePaths, Paths

AGENT_FILE = b"an agent"
# what the versions did not have: the page that describes the image, less these
VERSIONS: Mapping[str, tuple[str, ...]] = {
    "format 1": ("managed", "parents", "memory_mib"),
    "no fingerprint": ("managed", "parents", "memory_mib", "seed_key"),
    "no work disk": ("managed", "parents", "memory_mib", "seed_key", "init_version"),
    "no format": ("managed", "parents", "memory_mib", "seed_key", "init_version", "format"),
    "no manifest": ("managed", "parents", "memory_mib", "seed_key", "init_version", "format", "packages"),
    "no opencode": ("managed", "parents", "memory_mib", "seed_key", "init_version", "format", "has_opencode"),
}
HELPERS = ("vsock-ping", "ping_helper", "vsock_ping_helper")


def publish_small(paths: Paths, name: str, **changes: Any) -> Image:
    """An image of today, with these facts."""
    return asyncio.run(_publish(paths, name, changes))


async def _publish(paths: Paths, name: str, changes: dict[str, Any]) -> Image:
    async with workspace(paths) as work:
        out = ImagePaths(work / "image")
        out.directory.mkdir()
        out.initramfs.write_bytes(pack(b"box", []))
        contents = {out.root: b"root", out.kernel: b"kernel", out.work_seed: b"seed", out.manifest: b"[]"}
        for path, content in contents.items():
            path.write_bytes(content)
        roles = {"root": out.root, "kernel": out.kernel, "initramfs": out.initramfs, "manifest": out.manifest}
        facts: dict[str, Any] = {
            "distro": "debian", "release": "12", "kernel_release": "6", "boot_args": "console=ttyS0 rootfstype=ext4",
            "packages": 0, "created_at": "2026-01-01T00:00:00+00:00", "origin": "test", "needs_acpi": True,
            "seed_key": "SHA256:old", "init_version": INIT_VERSION,
        }  # fmt: skip
        parts = measure_parts(out.directory, {**roles, WORK_SEED: out.work_seed})
        image = Image(name=name, parts=parts, **(facts | changes))
        publish(paths, image, out.directory)
    return image


def rewrite(paths: Paths, name: str, document: Mapping[str, Any]) -> bytes:
    """Let image.json be this; what is in it then."""
    file = paths.image(name).metadata
    file.chmod(0o644)
    file.write_bytes(msgspec.json.encode(document))
    return file.read_bytes()


def written(paths: Paths, name: str) -> dict[str, Any]:
    """What image.json says, as it is."""
    return msgspec.json.decode(paths.image(name).metadata.read_bytes(), type=dict[str, Any])


def make_older(paths: Paths, name: str, version: str, *, helper: str = "") -> Image:
    """An image of an earlier version; with `helper`, the agent is a part of it under that older name.

    Returned is what it would be today, but for the parts that it never had.
    """
    image = publish_small(paths, name)
    where, document = paths.image(name), written(paths, name)
    document["format"] = 1
    for field in VERSIONS[version]:
        del document[field]
    for part in document["parts"].values():
        del part["modified_ns"]
    if "packages" not in document:
        where.manifest.unlink()
        del document["parts"]["manifest"]
    if "seed_key" not in document:
        where.work_seed.unlink()
        del document["parts"][WORK_SEED]
    if helper:
        (where.directory / helper).write_bytes(AGENT_FILE)
        (part,) = measure_parts(where.directory, {"agent": where.directory / helper}).values()
        document["parts"][helper] = {"file": part.file, "bytes": part.bytes, "sha256": part.sha256}
        document[f"{helper}_path"] = "/usr/lib/banger"
    rewrite(paths, name, document)
    return image
