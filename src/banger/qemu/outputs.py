"""Files and named pipes that the API may name for logs, metrics and the console. Writing never waits."""

import os
from pathlib import Path

from banger.model.errors import Invalid


def open_output(path: str) -> int:
    """A descriptor for appending; the file is made, mode 0600, if it is not there. Raises `Invalid`."""
    flags = os.O_CREAT | os.O_APPEND | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
    try:
        is_pipe = Path(path).is_fifo()
        # a named pipe opened for writing alone needs a reader already
        return os.open(path, flags | (os.O_RDWR if is_pipe else os.O_WRONLY), 0o600)
    except (OSError, ValueError) as error:
        raise Invalid(f"Failed to open {path!r}: {getattr(error, 'strerror', error)}") from error
