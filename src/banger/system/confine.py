"""Programs without privileges: the user that they run as, and what goes before their words.

Nothing heavy is imported here, as every engine has this module in its memory.
"""

import os
from collections.abc import Sequence
from pathlib import Path

_NOBODY = 65534


def _mapped(uid: int) -> bool:
    """Whether this user namespace has the id (user_namespaces(7), uid_map)."""
    lines = Path("/proc/self/uid_map").read_text().splitlines()
    return any(int(first) <= uid < int(first) + int(count) for first, _, count in (line.split() for line in lines))


def unprivileged_user(wanted: int) -> int | None:
    """The user id, and group id, for a program: the wanted one where it exists; None when it keeps ours."""
    if os.geteuid() != 0:
        return None
    return next((uid for uid in (wanted, _NOBODY) if _mapped(uid)), None)


def confinement(uid: int | None, groups: Sequence[int] = ()) -> list[str]:
    """What goes before an argv: no privileges, and killed by the kernel when we end (prctl(2), PR_SET_PDEATHSIG)."""
    prefix = ["setpriv", "--no-new-privs", "--pdeathsig", "KILL"]
    if uid is not None:
        listed = ["--groups", ",".join(str(group) for group in groups)] if groups else ["--clear-groups"]
        prefix += [f"--reuid={uid}", f"--regid={uid}", *listed, "--inh-caps=-all", "--bounding-set=-all"]
    return [*prefix, "--"]
