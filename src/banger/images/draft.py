"""An image that is being made: files in a workspace, and what will be said of them."""

from dataclasses import dataclass
from pathlib import Path

import msgspec

from banger.images.catalog import measure_parts
from banger.images.manifest import Package
from banger.model.image import MODULES, WORK_SEED, Image
from banger.paths import ImagePaths


@dataclass(frozen=True)
class Draft:
    """The files lie in the directory under their usual names (`ImagePaths`): root.ext4, vmlinux and initramfs.cpio
    always; bzImage, kernel.config, packages.json and work-seed.ext4 where there are such.

    image  as it will be, but for parts, packages and seed_key, which come of the files
    home   a filesystem and a directory in it that the work seed is made of; None: the root's own /root
    besides  packages that came without the root's package manager, and that the image it was made of has not
    """

    directory: Path
    image: Image
    home: tuple[Path, str] | None = None
    besides: tuple[Package, ...] = ()

    @property
    def files(self) -> ImagePaths:
        return ImagePaths(self.directory)


def usual_files(where: ImagePaths) -> dict[str, Path]:
    """The files of an image's directory by the roles of the parts that they are, whether they are there or not."""
    return {
        "root": where.root,
        "kernel": where.kernel,
        "bzimage": where.bzimage,
        "initramfs": where.initramfs,
        "config": where.config,
        "manifest": where.manifest,
        MODULES: where.modules,
        WORK_SEED: where.work_seed,
    }


def describe(draft: Draft, *, packages: int, seed_key: str) -> Image:
    """The image with the parts that are there: measured, read-only and durable from here on."""
    files = {role: path for role, path in usual_files(draft.files).items() if path.exists()}
    parts = measure_parts(draft.directory, files)
    return msgspec.structs.replace(draft.image, parts=parts, packages=packages, seed_key=seed_key)
