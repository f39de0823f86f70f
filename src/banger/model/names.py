"""Names and ids: what may be called what."""

import re
from collections.abc import Collection

from banger.model.errors import Invalid

NAME_MAX = 40
_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?")
_ADJECTIVES = [
    "able",
    "bold",
    "brave",
    "brisk",
    "calm",
    "clear",
    "cosy",
    "crisp",
    "deft",
    "fair",
    "fleet",
    "fond",
    "glad",
    "keen",
    "kind",
    "lucid",
    "merry",
    "neat",
    "nimble",
    "proud",
    "quick",
    "quiet",
    "sharp",
    "sunny",
    "swift",
    "tidy",
    "warm",
    "wise",
]
_ANIMALS = [
    "badger",
    "beaver",
    "crane",
    "dove",
    "eagle",
    "falcon",
    "ferret",
    "finch",
    "fox",
    "gecko",
    "heron",
    "ibis",
    "jackdaw",
    "kestrel",
    "lark",
    "lynx",
    "marten",
    "mole",
    "newt",
    "otter",
    "owl",
    "puffin",
    "raven",
    "robin",
    "seal",
    "shrew",
    "stoat",
    "swan",
    "tern",
    "vole",
    "wren",
]


def validate_name(value: str, what: str = "VM name") -> str:
    """Return `value` if it is an RFC 1123 label of at most 40 characters, else raise `Invalid`."""
    if len(value) > NAME_MAX:
        raise Invalid(f"the {what} has {len(value)} characters", hint=f"use at most {NAME_MAX}")
    if not _LABEL.fullmatch(value):
        raise Invalid(
            f"{value!r} is not a valid {what}",
            hint="use small letters, digits and '-', beginning and ending with a letter or digit, like dev-1",
        )
    return value


def numbered_name(name: str, taken: Collection[str]) -> str:
    """The name, or where it is taken the first free one of NAME-2, NAME-3, and so on; never too long."""
    found, number = name, 1
    while found in taken:
        number += 1
        found = f"{name[: NAME_MAX - len(str(number)) - 1].rstrip('-')}-{number}"
    return found


def make_up_name() -> str:
    """A pronounceable name such as `swift-otter`; the caller checks that it is free."""
    import secrets  # here: it costs every command 6 ms

    return f"{secrets.choice(_ADJECTIVES)}-{secrets.choice(_ANIMALS)}"


def new_id() -> str:
    """A random id of 12 hexadecimal digits."""
    import secrets

    return secrets.token_hex(6)
