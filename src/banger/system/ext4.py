"""ext4 filesystems in files, made and checked without mounting them."""

from pathlib import Path

from banger.model.errors import CommandFailed, Invalid
from banger.system.process import find_program, run

MIB = 1024 * 1024
MIN_BYTES = 16 * MIB
_MAKE_S = 600.0
# A fresh sparse file reads as zeros: told so (e2fsprogs 1.47), mke2fs writes neither inode tables nor journal,
# and the guest has no reason to either (ext4lazyinit would fill every overlay). No blocks are kept for root.
_LAYOUT = ["-m", "0", "-E", "assume_storage_prezeroed=1,nodiscard", "-J", "size=32"]


async def make_ext4(target: Path, size: int, *, label: str, tree: Path | None = None) -> None:
    """Create `target`, a sparse file of `size` bytes that holds an ext4 with a random UUID, filled from `tree`.

    Raises `CommandFailed` when the tree does not fit, `Invalid` for a size below 16 MiB.
    """
    if size < MIN_BYTES or size % 4096:
        raise Invalid(f"a filesystem of {size} bytes is not possible", hint="use whole MiB, 16 or more")
    with target.open("xb") as file:
        file.truncate(size)
    argv = [find_program("mke2fs", package="e2fsprogs"), "-q", "-F", "-t", "ext4", "-U", "random", "-L", label]
    argv += _LAYOUT if size >= 256 * MIB else _LAYOUT[:-2]
    argv += ["-d", str(tree)] if tree is not None else []
    await run([*argv, str(target)], timeout=_MAKE_S)


async def check_ext4(image: Path) -> None:
    """Check an unmounted filesystem without changing it. Raises `Invalid` when it has errors."""
    argv = [find_program("e2fsck", package="e2fsprogs"), "-f", "-n", str(image)]
    try:
        await run(argv, timeout=_MAKE_S)
    except CommandFailed as error:
        raise Invalid(f"the filesystem in {image.name} has errors", hint=error.hint, details=error.details) from error
