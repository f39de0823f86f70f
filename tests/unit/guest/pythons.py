"""Every Python that a guest may have, as far as this machine has it."""

import os
import shutil
import sys
from functools import cache
from pathlib import Path

import pytest

VERSIONS = tuple(f"3.{minor}" for minor in range(9, 15))


@cache
def find(version: str) -> str | None:
    """A Python of that version: the one that runs the tests, one of pyenv's, or one on PATH."""
    if version == f"{sys.version_info[0]}.{sys.version_info[1]}":
        return sys.executable
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    for folder in sorted(pyenv.glob(f"versions/{version}.*"), reverse=True):
        if (folder / "bin" / "python").exists():
            return str(folder / "bin" / "python")
    # pyenv's shims are on PATH too, but run only what is selected
    path = [entry for entry in os.environ.get("PATH", "").split(":") if Path(entry) != pyenv / "shims"]
    return shutil.which(f"python{version}", path=":".join(path))


def require(version: str) -> str:
    """The same, or the test is skipped and says why."""
    python = find(version)
    if python is None:
        pytest.skip(f"there is no python{version} here, on PATH or among pyenv's")
    return python
