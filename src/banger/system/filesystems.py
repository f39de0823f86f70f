"""Facts about filesystems."""

import os
from pathlib import Path

from banger.model.capacity import Filesystem


def filesystem_of(path: Path) -> Filesystem:
    """Room on the filesystem that holds a path (statvfs(3))."""
    seen = os.statvfs(path)
    used = seen.f_blocks - seen.f_bfree
    return Filesystem(
        total=seen.f_blocks * seen.f_frsize, used=used * seen.f_frsize, free=seen.f_bavail * seen.f_frsize
    )
