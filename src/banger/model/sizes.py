"""Sizes as people write them."""

import re

from banger.model.errors import Invalid

KIB, MIB, GIB, TIB = 1 << 10, 1 << 20, 1 << 30, 1 << 40
_UNITS = {"": 1, "k": KIB, "m": MIB, "g": GIB, "t": TIB}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?", re.IGNORECASE)


def parse_size(text: str, what: str, *, unit: str = "") -> int:
    """Bytes of `512M`, `2GiB`, `1.5g`; a bare number counts in `unit`. Units are powers of 1024."""
    found = _SIZE.fullmatch(text.strip())
    if not found:
        raise Invalid(f"{text!r} is not a size for {what}", hint="write a number with K, M, G or T, like 512M or 2G")
    number, suffix = found.groups()
    return int(float(number) * _UNITS[(suffix or unit).lower()])


def show_size(count: int) -> str:
    """`1.5 GiB`, `240 MiB`, `12 KiB`, `7 B`."""
    for factor, name in ((TIB, "TiB"), (GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        if count >= factor:
            value = count / factor
            return f"{value:.0f} {name}" if value >= 100 or value == int(value) else f"{value:.1f} {name}"
    return f"{count} B"
