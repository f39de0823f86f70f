"""What an image is: its parts, and how its machines are booted."""

from typing import Literal

import msgspec

IMAGE_FORMAT = 2  # 1 had no registered images, parents or least memory
# what the first process of an image's machines can do: 2 mounts a work disk
INIT_VERSION = 2
MODULES = "modules"  # the role of the part that has the kernel's modules where the root has none
WORK_SEED = "work-seed"  # the role of the part that new work disks are cloned from


class ImagePart(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One file of an image: its name in the image's directory, its length in bytes, its SHA-256 in hex.

    Of a registered image, the file may be somebody's elsewhere: an absolute path then, with the time of its last
    change (nanoseconds since the epoch), by which a change is seen without reading it.

    formerly  absolute paths of files with the same content that were this part before: a VM's root disk may name one
    """

    file: str
    bytes: int
    sha256: str
    modified_ns: int = 0
    formerly: tuple[str, ...] = ()

    @property
    def elsewhere(self) -> bool:
        """Whether the file is somebody's, and not in the image's directory."""
        return self.file.startswith("/")


class Image(msgspec.Struct, frozen=True, kw_only=True):
    """The content of image.json.

    parts       by role: root, kernel, initramfs; bzimage, config, manifest, modules, work-seed where there are such
    boot_args   the kernel's command line without what the engine and the VM add
    packages    how many packages the manifest lists
    created_at  RFC 3339, UTC
    origin      where the content came from, for people
    has_opencode  the opencode program and its service are in it
    needs_acpi  the kernel finds its virtio devices by ACPI or PCI, not on its command line
    init_version  of the initramfs' first process; see INIT_VERSION. 0: it is not ours, and mounts no work disk
    seed_key    fingerprint of the SSH key in the work seed; empty without a seed
    managed     all its files are its own; a registered image has some that lie elsewhere
    parents     the images that it was made of, the nearest first
    memory_mib  the least memory that its machines need without opencode, in MiB; 0 when nobody knows
    """

    name: str
    distro: str
    release: str
    kernel_release: str
    boot_args: str
    parts: dict[str, ImagePart]
    packages: int
    created_at: str
    origin: str
    needs_acpi: bool
    has_opencode: bool = False
    init_version: int = 1
    seed_key: str = ""
    managed: bool = True
    parents: tuple[str, ...] = ()
    memory_mib: int = 0
    format: int = IMAGE_FORMAT


class Verified(msgspec.Struct, frozen=True):
    """What was found of a sound image: the checks that each part has passed, by role; the key that its seed lets in.

    Checks: sha256; filesystem, for those that are one; key, for the work seed.
    """

    image: str
    checked: dict[str, list[str]]
    seed_key: str


class BootstrapSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The body of `POST /images/bootstrap`.

    name      None: the distribution's name, or DISTRO-minimal
    mirror    where packages come from; None: where this host gets its own
    minimal   without the dev baseline
    opencode  the image gets the opencode program and its service; None: unless it is minimal
    offline   what earlier bootstraps left in the cache must do: no network is used
    """

    distro: Literal["debian"]
    name: str | None = None
    mirror: str | None = None
    minimal: bool = False
    opencode: bool | None = None
    offline: bool = False

    @property
    def image(self) -> str:
        """What the image will be called."""
        return self.name or (f"{self.distro}-minimal" if self.minimal else self.distro)

    @property
    def with_opencode(self) -> bool:
        return not self.minimal if self.opencode is None else self.opencode


class ExportSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The body of `POST /images/NAME/export`.

    path    absolute, of the file to write
    force   a file that is there already is replaced
    stream  it is what somebody reads from, such as a pipe: it is written to as it is
    """

    path: str
    force: bool = False
    stream: bool = False


class Exported(msgspec.Struct, frozen=True):
    """An image was packed: the archive's path and its bytes; the image's bytes, without holes."""

    image: str
    path: str
    bytes: int
    image_bytes: int


class ImportSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The body of `POST /images/import`.

    path   absolute, of an archive, a pipe that gives one, or a directory with an OCI layout
    name   what the image shall be called; None: as it was called where it was exported
    check  only look whether the archive is whole and sound; the result is a `Verified`
    oci    for an OCI layout or a docker archive
    """

    path: str
    name: str | None = None
    check: bool = False
    oci: "OciOptions | None" = None


class OciOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How an OCI image becomes a machine's.

    tag          which image of several, by tag or digest
    kernel_from  the image whose kernel its machines get; None: the newest of Debian that is managed
    size_bytes   of the root disk; None: 4 GiB, or more where that is needed
    install      packages that a machine needs are installed, by the image's own programs
    """

    tag: str = ""
    kernel_from: str | None = None
    size_bytes: int | None = None
    install: bool = True
