"""Who QEMU runs as: started by root, a user of its own who owns nothing; else the user who started us."""

import contextlib
import os
from pathlib import Path

from banger.system.confine import confinement, unprivileged_user

# Above every range that distributions, containers and subordinate ids use; with our pid added, each QEMU that runs
# has a user of its own, and no two can trace or signal each other.
_FIRST_UID = 1_900_000_000


def confined(argv: list[str], accelerator: str) -> list[str]:
    """`argv` without privileges, and killed by the kernel when we end, however we end."""
    uid = unprivileged_user(_FIRST_UID + os.getpid())
    kvm = _kvm_group(accelerator)
    return [*confinement(uid, [kvm] if kvm else []), *argv]


def _kvm_group(accelerator: str) -> int:
    if accelerator == "kvm":
        with contextlib.suppress(OSError):
            return Path("/dev/kvm").stat().st_gid
    return 0
