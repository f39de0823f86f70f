"""The initramfs of a machine that edits a root filesystem: an image's own, and behind it an archive with another /init.

docs/commit.md describes the machine; `service.appliance` runs it.
"""

import re
from importlib.resources import files

from banger.images.cpio import BLOCK, Cpio
from banger.images.initramfs import read_busybox

MARK = "banger-edit"
BEGINS, NO_DISK, NO_MOUNT, BUSY, UNTRIMMED = "begins", "nodisk", "nomount", "busy", "untrimmed"


def behind(initramfs: bytes, script: bytes, busybox: bytes | None = None) -> bytes:
    """An initramfs that runs `script` with busybox's sh over the root; see files/edit-init.

    The first may be anybody's, compressed or not: the kernel unpacks one archive after the other, and later files
    replace earlier ones. Raises `HostRequirement` without a static busybox on this host.
    """
    archive = Cpio()
    archive.directory(MARK)
    archive.file(f"{MARK}/busybox", read_busybox() if busybox is None else busybox, 0o755)
    archive.file(f"{MARK}/script", script)
    archive.file("init", files("banger.images").joinpath("files/edit-init").read_bytes(), 0o755)
    return initramfs + bytes(-len(initramfs) % BLOCK) + archive.finish()


def tidy() -> bytes:
    """The script that takes out of a root what belongs to one machine or one person."""
    return files("banger.images").joinpath("files/tidy.sh").read_bytes()


def arguments(boot_args: str, token: str, *, off: str, tree: str = "") -> str:
    """The kernel's command line: the image's, less what would start another first process."""
    kept = [word for word in boot_args.split() if not word.startswith(("rdinit=", "init=", "banger."))]
    words = [*kept, "console=ttyS0", "panic=-1", "reboot=k", "loglevel=4", f"banger.edit={token}", f"banger.off={off}"]
    return " ".join([*words, f"banger.tree={tree}"] if tree else words)


def outcome(console: str, token: str) -> tuple[list[str], list[str]]:
    """What the machine said last of how it went, word by word, and the lines that were printed on the way to it."""
    said: list[str] = []
    before: list[str] = []
    lines: list[str] = []
    for line in console.replace("\r", "\n").split("\n"):
        if found := re.fullmatch(rf"{MARK} {token} ([a-z0-9 ]+)", line.strip()):
            said, before, lines = found[1].split(), lines, []
        elif line.strip():
            lines.append(line.strip())
    return said, before if said not in ([], [BEGINS]) else lines
