"""Engines: what each can do, which there are on this host, and what can be asked of them."""

from typing import Literal

import msgspec

from banger.model.errors import Invalid

RECORD_FORMAT = 1
# in banger-vmm's log: PAUSED and why, for a guest that nobody paused; and that it runs on
PAUSED = "paused: "
NO_SPACE = "no space left on the host's disk"
RESUMED = "resumed"


class Capabilities(msgspec.Struct, frozen=True, kw_only=True):
    """What an engine can do, so that callers ask before they rely on it.

    api_version       the release of the Firecracker API that it honours
    needs_kvm         it runs nothing where KVM does not work
    user_network      `host_dev_name` may be `user:closed` or `user:nat`, which needs no privilege
    qcow2             a drive whose name ends in `.qcow2` is one
    jailer            it may be started through the jailer
    acpi              it describes virtio devices by ACPI, so kernels of distributions find them
    power_off         a guest that powers off ends it; else only one that reboots does
    vsock_pause_hang  after a bare pause and resume, new vsock connections from the host can hang for ever
    stops_when_full   it pauses a guest whose write finds the host's disk full; else the guest has an I/O error
    """

    api_version: str
    needs_kvm: bool
    user_network: bool
    qcow2: bool
    jailer: bool
    acpi: bool
    power_off: bool
    vsock_pause_hang: bool
    stops_when_full: bool


class EngineInfo(msgspec.Struct, frozen=True, kw_only=True):
    """An engine on this host.

    program  the words that start it, before its own arguments
    jailer   the path of the jailer of the same release, if there is one
    origin   bundled: banger's own banger-vmm; installed: in banger's directory of engines; path: found on PATH
    reason   why it is usable, or why not, in words for a person
    """

    name: Literal["firecracker", "qemu"]
    version: str
    program: tuple[str, ...]
    jailer: str | None
    origin: Literal["bundled", "installed", "path"]
    capabilities: Capabilities
    usable: bool
    reason: str


class EngineInstallSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The body of `POST /engines/install`.

    version  like 1.15.1; None: the one that the file's name tells, or else the one banger recommends
    mirror   a URL that stands for the forge's `releases/download`; None: the forge itself
    file     the absolute path of an archive on this host, in place of a download
    sha256   of the archive, in hex: needed for a release that banger has no digest of
    """

    name: Literal["firecracker"] = "firecracker"
    version: str | None = None
    mirror: str | None = None
    file: str | None = None
    sha256: str | None = None

    def check(self) -> None:
        """Raise `Invalid` for parts that contradict each other."""
        if self.file is not None and self.mirror is not None:
            raise Invalid("--file and --mirror exclude each other", hint="give one of them")
        if self.file is not None and not self.file.startswith("/"):
            raise Invalid(f"{self.file!r} is not an absolute path", hint="begin it with /")


class EngineRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The content of engine.json, beside the programs that it describes.

    archive       digest of the release's archive, as `sha256:HEX` or `sha512:HEX`
    firecracker   digest of the program, as `sha256:HEX`; `jailer` likewise
    trust         who vouched for the archive's digest, for people
    source        the URL or the file that the archive came from
    installed_at  RFC 3339, UTC
    """

    name: Literal["firecracker"]
    version: str
    archive: str
    firecracker: str
    jailer: str
    trust: str
    source: str
    installed_at: str
    format: int = RECORD_FORMAT


class EngineInstalled(msgspec.Struct, frozen=True, kw_only=True):
    """What an installation ends with; `changed` is false when the release was there already."""

    changed: bool
    directory: str
    record: EngineRecord
