"""The packages of a root, out of its own package database: name, version and architecture, sorted, so that two can be
compared line by line.

A database may be anybody's: what makes no sense in it is left out, and it has bounds.
"""

import json
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from banger.images.unmounted import unmounted
from banger.model.errors import NotFound
from banger.model.text import harmless

Package = dict[str, str]

MAX_PACKAGES = 200_000
_MAX_WORD = 200
_MAX_MANIFEST = 64 * 1024 * 1024
_FIELDS = re.compile(r"^(Package|Version|Architecture|Status): (.*)$", re.MULTILINE)
_LETTERS = re.compile(r"^([PVA]):(.*)$", re.MULTILINE)


def dpkg_packages(status: str) -> list[Package]:
    """The installed packages of dpkg's status file (dpkg(1))."""
    found = []
    for stanza in status.split("\n\n"):
        fields = dict(_FIELDS.findall(stanza))
        if fields.get("Status") == "install ok installed":
            found.append(_package(fields, "Package", "Version", "Architecture"))
    return in_order(found)


def apk_packages(installed: str) -> list[Package]:
    """The packages of apk's database of installed ones (apk(5), v2)."""
    return in_order(_package(dict(_LETTERS.findall(stanza)), "P", "V", "A") for stanza in installed.split("\n\n"))


def _package(fields: dict[str, str], name: str, version: str, arch: str) -> Package:
    return {
        key: harmless(fields.get(field, ""))[:_MAX_WORD]
        for key, field in (("name", name), ("version", version), ("arch", arch))
    }


# where a database lies in a root -> how it is read
DATABASES: dict[str, Callable[[str], list[Package]]] = {
    "/var/lib/dpkg/status": dpkg_packages,
    "/lib/apk/db/installed": apk_packages,
}


def in_order(packages: Iterable[Package]) -> list[Package]:
    """As a manifest lists them; those without a name are left out."""
    named = (package for package in packages if package["name"])
    return sorted(named, key=lambda package: (package["name"], package["arch"]))[:MAX_PACKAGES]


async def read_packages(root: Path, beside: Path) -> list[Package] | None:
    """What the unmounted root `root` says is installed in it; None when it has no package database that is known.

    `beside` is for what lies on disk meanwhile. Raises `CommandFailed`, `Invalid`, `Timeout`.
    """
    async with unmounted(root, beside) as reader:
        for path, parse in DATABASES.items():
            try:
                return parse((await reader.read(path)).decode(errors="replace"))
            except NotFound:
                continue
    return None


def write_manifest(path: Path, packages: Sequence[Package]) -> None:
    """One package after the other, as JSON."""
    path.write_text(json.dumps(packages, indent=1) + "\n")


def read_manifest(path: Path) -> list[Package]:
    """What `write_manifest` wrote; nothing of a file that is none."""
    try:
        with path.open("rb") as file:
            found = json.loads(file.read(_MAX_MANIFEST))
    except (OSError, ValueError, RecursionError):
        return []
    names = ("name", "version", "arch")
    if not isinstance(found, list):
        return []
    return in_order(
        {name: harmless(str(package.get(name, "")))[:_MAX_WORD] for name in names}
        for package in found
        if isinstance(package, dict)
    )
