"""A list of packages that a person brings: banger's packages.json, or what dpkg-query and `dpkg -l` print."""

import json
from collections.abc import Iterator
from pathlib import Path

from banger.images.manifest import MAX_PACKAGES, Package, in_order, write_manifest
from banger.model.errors import Invalid
from banger.model.text import harmless

_MAX_BYTES = 32 * 1024 * 1024
_MAX_WORD = 200
_NAMES = ("name", "version", "arch")


def read_package_list(source: Path, target: Path) -> int:
    """Write the packages to `target`, as banger lists them; how many. Raises `Invalid` for what is no such list."""
    with source.open("rb") as file:
        raw = file.read(_MAX_BYTES + 1)
    if len(raw) > _MAX_BYTES:
        raise Invalid(f"--packages: {source} has more than {_MAX_BYTES >> 20} MiB")
    text = raw.decode(errors="replace")
    packages = list(_from_json(text) if text.lstrip().startswith("[") else _from_lines(text))
    if not packages or len(packages) > MAX_PACKAGES:
        raise Invalid(
            f"--packages: {source} lists no packages, or more than {MAX_PACKAGES}",
            hint="give a packages.json, or lines of name, version and architecture, as dpkg-query -W prints them",
        )
    packages = in_order(packages)
    write_manifest(target, packages)
    return len(packages)


def _from_json(text: str) -> Iterator[Package]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return
    for entry in found if isinstance(found, list) else []:
        if isinstance(entry, dict) and isinstance(entry.get("name"), str):
            yield _package([str(entry.get(name, "")) for name in _NAMES])


def _from_lines(text: str) -> Iterator[Package]:
    """Words of a line: name or name:architecture, version, architecture; `dpkg -l` has the state before them."""
    for line in text.splitlines():
        words = line.split()
        if words and len(words[0]) in (2, 3) and words[0][:2] in ("ii", "hi") and len(words) >= 4:
            words = words[1:4]
        elif len(words) not in (2, 3):
            continue
        name, _, arch = words[0].partition(":")
        yield _package([name, words[1], words[2] if len(words) == 3 else arch])


def _package(words: list[str]) -> Package:
    return {name: harmless(word)[:_MAX_WORD] for name, word in zip(_NAMES, words, strict=True)}
