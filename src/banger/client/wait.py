"""Waiting for a process to end."""

import os
import select

from banger.model.errors import Timeout

END_DEADLINE_S = 30.0


def wait_for_end(pid: int) -> None:
    """Return once the process has ended. Raises `Timeout`."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        if not select.select([descriptor], [], [], END_DEADLINE_S)[0]:
            raise Timeout(f"process {pid} did not end within {END_DEADLINE_S:g} s", hint=f"look at it: ps {pid}")
    finally:
        os.close(descriptor)
