"""Names of files that are being made: they begin with a dot until the file is whole."""

import secrets
from pathlib import Path


def partial_of(path: Path) -> Path:
    """A name beside `path` that nothing has, for what is renamed to it once it is whole."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}")
