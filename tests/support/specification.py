"""The published Firecracker specification, where it lies beside the project; tests that need it say so when not."""

import functools
import os
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

_BESIDE = Path(__file__).parents[3] / "shared" / "specs" / "firecracker.yaml"
PATH = Path(os.environ.get("BANGER_FIRECRACKER_SPEC", _BESIDE))
needed = pytest.mark.skipif(not PATH.exists(), reason="firecracker.yaml is not here: BANGER_FIRECRACKER_SPEC names it")


class _Loader(yaml.SafeLoader):
    """YAML as of 1.2: of the words, only true and false are booleans, so that a level may be Off."""


_Loader.yaml_implicit_resolvers = {
    letter: [(tag, word) for tag, word in resolvers if tag != "tag:yaml.org,2002:bool" or letter in "tTfF"]
    for letter, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


@functools.cache
def document() -> dict[str, Any]:
    """The whole of it."""
    return dict(yaml.load(PATH.read_text(), _Loader)) if PATH.exists() else {"paths": {}, "definitions": {}}


def definition(name: str) -> dict[str, Any]:
    return dict(document()["definitions"][name])


def operations() -> list[tuple[str, str, str | None]]:
    """Every method and path, and the name of its body's schema."""
    found = []
    for path, methods in document()["paths"].items():
        for method, operation in methods.items():
            bodies = [p["schema"]["$ref"] for p in operation.get("parameters", ()) if p["in"] == "body"]
            found.append((method.upper(), path, bodies[0].rpartition("/")[2] if bodies else None))
    return found


def validate(instance: Any, name: str) -> None:
    """Raise what jsonschema says unless `instance` is as the specification's definition `name`."""
    schema = {"$ref": f"#/definitions/{name}", "definitions": _closed()}
    jsonschema.Draft4Validator(schema).validate(instance)


@functools.cache
def _closed() -> dict[str, Any]:
    """The definitions, with fields that they do not name refused, as Firecracker does."""
    return {
        name: {"additionalProperties": False, **schema} if "properties" in schema else schema
        for name, schema in document()["definitions"].items()
    }


def answer(method: str, path: str) -> str | None:
    """The name of the schema of the answer 200."""
    schema = document()["paths"][path][method.lower()]["responses"].get(200, {}).get("schema", {})
    return str(schema["$ref"]).rpartition("/")[2] if "$ref" in schema else None
