"""Work seeds: the small filesystem in an image that new work disks are cloned from, with root's home in it."""

import os
from pathlib import Path

from banger.model.home import HOME_MODE, SHELL_FILES, WORK_LABEL
from banger.system.ext4 import GROWABLE, make_ext4
from banger.system.files import write_new

SEED_BYTES = 64 * 1024 * 1024


async def make_work_seed(home: Path, target: Path) -> None:
    """Create `target` from the directory `home`, which gets the shell files that it lacks.

    Raises `CommandFailed` when it does not fit, like `make_ext4`.
    """
    for file in SHELL_FILES:
        if not os.path.lexists(home / file.path):
            write_new(home / file.path, file.content, file.mode)
    home.chmod(HOME_MODE)
    await make_ext4(target, SEED_BYTES, label=WORK_LABEL, tree=home, options=GROWABLE)
