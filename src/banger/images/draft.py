"""An image that is being made: files in a workspace, and what will be said of them."""

from dataclasses import dataclass
from pathlib import Path

from banger.model.image import Image
from banger.paths import ImagePaths


@dataclass(frozen=True)
class Draft:
    """The files lie in the directory under their usual names (`ImagePaths`): root.ext4, vmlinux and initramfs.cpio
    always; bzImage, kernel.config, packages.json and work-seed.ext4 where there are such.

    image  as it will be, but for parts, packages and seed_key, which come of the files
    home   a filesystem and a directory in it that the work seed is made of; None: the root's own /root
    """

    directory: Path
    image: Image
    home: tuple[Path, str] | None = None

    @property
    def files(self) -> ImagePaths:
        return ImagePaths(self.directory)
