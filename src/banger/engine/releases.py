"""The official releases of Firecracker for x86-64 that banger has a digest of, newest first.

A digest is written down here only as it was found; `recorded` says where. The forge publishes one beside each
archive, but what can replace the archive can replace that as well.
"""

import msgspec

from banger.engine.capabilities import firecracker_capabilities, oldest, parse_version
from banger.model.errors import Invalid

# what stands before /v1.15.1/firecracker-v1.15.1-x86_64.tgz; a mirror has the same files under the same names
FORGE = "https://github.com/firecracker-microvm/firecracker/releases/download"


class Release(msgspec.Struct, frozen=True, kw_only=True):
    """One release: digests as `ALGORITHM:HEX`, of the archive and, where known, of the two programs in it."""

    version: str
    archive: str
    firecracker: str | None = None
    jailer: str | None = None
    recorded: str


RELEASES: tuple[Release, ...] = (
    Release(
        version="1.16.1",
        archive="sha256:382a02a869e4d6d5cb14c40577f9545e8458021ea8b0b2d3fc10ec14d9c242e6",
        firecracker="sha256:2fd0171309af7e24cf8dafc8a6f921c1434c49b5f9349bb996b7ed0a4deb8aa7",
        jailer="sha256:1f3a0c1fe86212d0001819bfe0819071c01208b3ccc9398c3b3bc1b84cf21edd",
        recorded="aavidad/orquestaV2 (all three), and seven more public projects (the archive)",
    ),
    Release(
        version="1.15.1",
        archive="sha256:d4a32ab2322d887ca1bc4a4e7afa9cc35393e6362dfc2b3becb389d362e4275a",
        firecracker="sha256:7e8b57e88c459396d4680d83dcdd8c7f72305447cb55b11f4ac98ad70a3f7825",
        jailer="sha256:4830a9b1fc6cece036d8992ff12f1fe9c5247aacad77f42c7aba683c7a08622e",
        recorded="solsticeaistudio/event-horizon-harness (all three), and six more public projects (the archive)",
    ),
    Release(
        version="1.10.1",
        archive="sha256:36112969952b0e34fadcfca769d48a55dc22cbba99af17e02bd0e24fc35adc77",
        recorded="AprileNunzio/Jarvis, an AUR package, an OpenEmbedded recipe, and three more public projects",
    ),
)


def find_release(version: str) -> Release | None:
    """The pinned release of this version."""
    return next((release for release in RELEASES if release.version == version), None)


def recommended() -> Release | None:
    """The newest pinned release without a known fault that banger would run into; None when none is pinned."""
    sound = [release for release in RELEASES if not firecracker_capabilities(release.version).vsock_pause_hang]
    return max(sound or RELEASES, key=lambda release: parse_version(release.version), default=None)


def archive_name(version: str) -> str:
    """The archive's name on the forge and on every mirror."""
    return f"firecracker-v{version}-x86_64.tgz"


def archive_url(version: str, mirror: str | None) -> str:
    """Where the archive of a release lies."""
    return f"{(mirror or FORGE).rstrip('/')}/v{version}/{archive_name(version)}"


def check_version(version: str) -> str:
    """The version without a leading v. Raises `Invalid` when it is none, or too old."""
    if parse_version(version) < parse_version(oldest()):
        raise Invalid(
            f"Firecracker {version} is not new enough: its guests do not find their devices by ACPI",
            hint=f"choose {oldest()} or newer",
        )
    return version.removeprefix("v")
