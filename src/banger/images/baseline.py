"""The dev baseline: the packages that make an image a place to work in, one list for each distribution."""

import re
from importlib.resources import files

from banger.model.errors import Invalid

_PACKAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9+._-]*")


def baseline(distro: str) -> tuple[str, ...]:
    """The distribution's list, in files/baseline-DISTRO.txt. Raises `Invalid` when there is none, or a bad one."""
    file = files("banger.images").joinpath(f"files/baseline-{distro}.txt")
    try:
        text = file.read_text()
    except FileNotFoundError as error:
        raise Invalid(f"there is no dev baseline for {distro}", hint="--minimal does without") from error
    return parse_baseline(text, distro)


def parse_baseline(text: str, distro: str) -> tuple[str, ...]:
    """The packages of a list: one a line, blank lines and what is behind `#` left out.

    Raises `Invalid` with the number of the line that names no package or one that was named before; for an empty list.
    """
    found: dict[str, int] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        name = line.partition("#")[0].strip()
        if not name:
            continue
        where = f"line {number} of the dev baseline for {distro}"
        if not _PACKAGE.fullmatch(name):
            raise Invalid(f"{where}: {name!r} is not a package name", hint="write one package a line")
        if name in found:
            raise Invalid(f"{where}: {name} is in line {found[name]} already", hint="remove one of them")
        found[name] = number
    if not found:
        raise Invalid(f"the dev baseline for {distro} names no package", hint="--minimal does without")
    return tuple(found)
