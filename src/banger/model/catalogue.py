"""What is told and asked of the images as a whole: who uses them, other names, and what is taken away."""

import msgspec

from banger.model.image import Image


class ImageDocument(Image, frozen=True, kw_only=True):
    """An image as it is told: image.json, and what is seen from outside.

    vms              names of the VMs whose root disks lie over it, running or not
    children         names of the images that were made of it
    allocated_bytes  what the files in its own directory take on the disk; blocks that are shared count
    problem          what is wrong with it; machines cannot be made of such a one. Empty for a sound image

    Of a damaged image whose image.json cannot be read, only the name and the problem are known.
    """

    vms: tuple[str, ...] = ()
    children: tuple[str, ...] = ()
    allocated_bytes: int = 0
    problem: str = ""


class RenameSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of `POST /images/{name}/rename`."""

    name: str


class PruneSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The body of `POST /images/prune`; `all`: also what is kept to save time, used or not."""

    all: bool = False
    dry_run: bool = False


class PrunedKind(msgspec.Struct, frozen=True):
    """What went of one kind, or would: how many files, and bytes on the disk. `left`: why the kind was left alone."""

    kind: str
    files: int = 0
    bytes: int = 0
    left: str = ""


class Pruned(msgspec.Struct, frozen=True):
    """The result of `image.prune`; with `dry_run`, nothing was removed."""

    dry_run: bool
    kinds: list[PrunedKind]
    bytes: int
