"""Who QEMU runs as: started by root, a user of its own who owns nothing; else the user who started us."""

import contextlib
import os
from pathlib import Path

# Above every range that distributions, containers and subordinate ids use; with our pid added, each QEMU that runs
# has a user of its own, and no two can trace or signal each other.
_FIRST_UID = 1_900_000_000
_NOBODY = 65534


def _mapped(uid: int) -> bool:
    """Whether this user namespace has the id (user_namespaces(7), uid_map)."""
    lines = Path("/proc/self/uid_map").read_text().splitlines()
    return any(int(first) <= uid < int(first) + int(count) for first, _, count in (line.split() for line in lines))


def unprivileged_user() -> int | None:
    """The user id, and group id, that QEMU shall have; None when it keeps ours."""
    if os.geteuid() != 0:
        return None
    candidates = (_FIRST_UID + os.getpid(), _NOBODY)
    return next((uid for uid in candidates if _mapped(uid)), None)


def confined(argv: list[str], accelerator: str) -> list[str]:
    """`argv` without privileges, and killed by the kernel when we end, however we end (prctl(2), PR_SET_PDEATHSIG)."""
    prefix = ["setpriv", "--no-new-privs", "--pdeathsig", "KILL"]
    uid = unprivileged_user()
    if uid is not None:
        groups = ["--groups", str(kvm)] if (kvm := _kvm_group(accelerator)) else ["--clear-groups"]
        prefix += [f"--reuid={uid}", f"--regid={uid}", *groups, "--inh-caps=-all", "--bounding-set=-all"]
    return [*prefix, "--", *argv]


def _kvm_group(accelerator: str) -> int:
    if accelerator == "kvm":
        with contextlib.suppress(OSError):
            return Path("/dev/kvm").stat().st_gid
    return 0
