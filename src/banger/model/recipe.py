"""Recipes: what `image build` is asked for, by flags or by a file, and what comes of it."""

import difflib
from typing import Any

import msgspec

from banger.model.errors import Invalid
from banger.model.image import Image
from banger.model.names import validate_name
from banger.model.sizes import MIB
from banger.model.vm import check_disk_size

SCRIPT_MAX = 4 * MIB
PACKAGES_MAX = 4096
STEPS_MAX = 256
_PATH_MAX = 4096


class Copy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file or a tree of the host that comes into the image.

    `source` is absolute. A tree's content comes into `destination`; a file becomes it, or comes into it when it ends
    with a slash.
    """

    source: str
    destination: str


class BuildSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The body of `POST /images/build`. Paths are absolute; the daemon reads them as the person who runs it.

    size     bytes of the root disk; None means the base's
    scripts  files that are run in the guest, in order, after everything else
    keep_on_failure  the VM stays when a step fails
    cache    begin from what an earlier build has left of the same first steps
    """

    name: str
    base: str = msgspec.field(name="from")
    size: int | None = None
    packages: tuple[str, ...] = ()
    copy: tuple[Copy, ...] = ()
    scripts: tuple[str, ...] = ()
    opencode: bool = False
    docker: bool = False
    keep_on_failure: bool = False
    cache: bool = True

    def check(self) -> None:
        """Raise `Invalid` for what can never be built."""
        validate_name(self.name, "image name")
        validate_name(self.base, "image name")
        if self.name == self.base:
            raise Invalid("an image cannot be built from itself", hint="choose another name for the new one")
        if self.size is not None:
            check_disk_size(self.size, "--size", MIB)
        if len(self.packages) > PACKAGES_MAX or len(self.copy) + len(self.scripts) > STEPS_MAX:
            raise Invalid(
                "the recipe is too long", hint=f"use at most {PACKAGES_MAX} packages and {STEPS_MAX} copies and scripts"
            )
        for script in self.scripts:
            _check_path(script, "the script")
        for copy in self.copy:
            _check_path(copy.source, "the source")
            _check_path(copy.destination, "the destination")


def _check_path(path: str, what: str) -> None:
    if not path.startswith("/") or not path.isprintable() or len(path) > _PATH_MAX or ".." in path.split("/"):
        raise Invalid(f"{what} {path!r} is no absolute path", hint="begin it with / and leave out '..'")


class PackageChange(msgspec.Struct, frozen=True):
    """A package of the image or its base; `before` is empty for one that came, `after` for one that went."""

    name: str
    before: str
    after: str


class Built(msgspec.Struct, frozen=True, kw_only=True):
    """What a build has made: the image, what its packages differ in from the base's, and where its output is kept.

    `cached` are the steps that an earlier build had done.
    """

    image: Image
    packages: tuple[PackageChange, ...]
    cached: tuple[str, ...]
    log: str


class RecipeFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A recipe as a TOML file has it: the words of the flags. Paths are relative to the file's directory."""

    name: str | None = None
    base: str | None = msgspec.field(name="from", default=None)
    size: str | None = None
    packages: tuple[str, ...] = ()
    package_file: str | None = None
    copy: tuple[str, ...] = ()
    scripts: tuple[str, ...] = ()
    opencode: bool = False
    docker: bool = False


def read_recipe(text: bytes, where: str) -> RecipeFile:
    """The recipe in a file's content; `where` names it. Raises `Invalid`, with the nearest key where one is unknown."""
    try:
        given: dict[str, Any] = msgspec.toml.decode(text, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Invalid(f"cannot use {where}: {error}", hint="docs/build.md shows a recipe") from error
    known = RecipeFile.__struct_encode_fields__
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            raise Invalid(
                f"cannot use {where}: a recipe has no {key!r}",
                hint=f"did you mean {near[0]}?" if near else f"it may have {', '.join(known)}",
            )
    try:
        return msgspec.convert(given, type=RecipeFile)
    except msgspec.ValidationError as error:
        raise Invalid(f"cannot use {where}: {error}", hint="docs/build.md shows a recipe") from error


def read_packages(text: str) -> list[str]:
    """The names in a list of packages, separated by white space or commas; behind a `#` is a comment."""
    lines = (line.partition("#")[0] for line in text.splitlines())
    return [name for line in lines for name in line.replace(",", " ").split()]


def read_copy(text: str) -> tuple[str, str]:
    """Source and destination of SRC:DST; the last `:/` parts them. Raises `Invalid`."""
    source, colon, destination = text.rpartition(":/")
    if not source or not colon:
        raise Invalid(f"{text!r} is no SRC:DST", hint="name an absolute path behind the colon, like site.conf:/etc/")
    return source, f"/{destination}"
