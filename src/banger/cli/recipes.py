"""From flags and a recipe's file to what the daemon is asked: every path absolute, every list read."""

import argparse
import os
from pathlib import Path
from typing import Any

from banger.model.errors import Invalid, NotFound
from banger.model.recipe import BuildSpec, Copy, RecipeFile, read_copy, read_packages, read_recipe
from banger.model.sizes import parse_size

RECIPE_MAX = 1024 * 1024
SUFFIX = ".toml"


def build_spec(arguments: argparse.Namespace) -> BuildSpec:
    """What was asked for: the file's lists first, then the flags'; of single values the flags' count.

    Raises `Invalid`, `NotFound` (a file).
    """
    name, file = arguments.name, arguments.recipe
    if name is not None and name.endswith(SUFFIX):
        if file is not None:
            raise Invalid(f"two recipes were given: {name} and {file}", hint="give one, and the image's name")
        name, file = None, name
    recipe, beside = RecipeFile(), Path.cwd()
    if file is not None:
        beside = Path(file).absolute().parent
        recipe = read_recipe(_read(Path(file)), file)
    name, base = name or recipe.name, arguments.base or recipe.base
    if name is None:
        raise Invalid("the new image has no name", hint="banger image build NAME --from BASE")
    if base is None:
        raise Invalid("what to build from was not said", hint=f"banger image build {name} --from BASE")
    size = arguments.size or recipe.size
    return BuildSpec(
        name=name,
        base=base,
        size=None if size is None else parse_size(size, "--size", unit="g"),
        packages=_packages(arguments, recipe, beside),
        copy=tuple(
            Copy(source=_absolute(where, source), destination=destination)
            for where, texts in ((beside, recipe.copy), (Path.cwd(), arguments.copy))
            for source, destination in map(read_copy, texts)
        ),
        scripts=tuple(
            _absolute(where, script)
            for where, scripts in ((beside, recipe.scripts), (Path.cwd(), arguments.scripts))
            for script in scripts
        ),
        opencode=recipe.opencode if arguments.opencode is None else arguments.opencode,
        docker=recipe.docker if arguments.docker is None else arguments.docker,
        keep_on_failure=arguments.keep_on_failure,
        cache=arguments.cache,
    )


def _packages(arguments: argparse.Namespace, recipe: RecipeFile, beside: Path) -> tuple[str, ...]:
    names = list(recipe.packages)
    files = [(beside, recipe.package_file), *((Path.cwd(), name) for name in arguments.package_files)]
    for where, name in files:
        if name is not None:
            names += read_packages(_text(Path(_absolute(where, name))))
    for text in arguments.packages:
        names += read_packages(text)
    return tuple(dict.fromkeys(names))


def _absolute(where: Path, name: str) -> str:
    return os.path.normpath(where / Path(name).expanduser())


def _text(path: Path) -> str:
    try:
        return _read(path).decode()
    except UnicodeDecodeError as error:
        raise Invalid(f"{path} is no text: {error.reason}") from error


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(RECIPE_MAX + 1)
    except FileNotFoundError as error:
        raise NotFound(f"there is no file {path}", hint="check the path") from error
    except OSError as error:
        raise Invalid(f"{path} cannot be read: {error.strerror}") from error
    if len(content) > RECIPE_MAX:
        raise Invalid(f"{path} has more than {RECIPE_MAX >> 20} MiB")
    return content


def package_words(changes: list[dict[str, Any]]) -> str:
    """`+3 -1 packages, 2 of another version`."""
    added = sum(not change["before"] for change in changes)
    removed = sum(not change["after"] for change in changes)
    other = len(changes) - added - removed
    return f"+{added} -{removed} packages" + (f", {other} of another version" if other else "")
