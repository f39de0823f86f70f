"""What commands share: the client, the name of a VM, and the question before data goes."""

import argparse
import sys

from banger.cli.parser import Parser
from banger.client.api import Client
from banger.model.errors import Cancelled, Invalid
from banger.paths import default_paths


def client(*, start: bool = True) -> Client:
    return Client(default_paths(), start=start, warn=lambda text: print(f"warning: {text}", file=sys.stderr))


def add_name(verb: Parser, help: str = "the VM: its name, id, or the first 4 or more digits of its id") -> None:
    """A VM's name, as an argument or as --name."""
    verb.add_argument("name", nargs="?", metavar="NAME", help=help)
    verb.add_argument("--name", dest="named", metavar="NAME", help="the same, as a flag")


def name_of(arguments: argparse.Namespace, *, required: bool = True) -> str | None:
    """The name that was given. Raises `Invalid` for none where one is needed, or for two that differ."""
    names = {name for name in (arguments.name, arguments.named) if name is not None}
    if len(names) > 1:
        raise Invalid(f"two names were given: {arguments.name} and {arguments.named}", hint="give one")
    if required and not names:
        raise Invalid("no VM was named", hint="`banger vm list` shows what there is")
    return names.pop() if names else None


def required_name(arguments: argparse.Namespace) -> str:
    name = name_of(arguments)
    assert name is not None
    return name


def confirm(question: str) -> None:
    """Ask on a terminal; elsewhere `Invalid` names --yes."""
    if not sys.stdin.isatty():
        raise Invalid("this destroys data and nobody can be asked", hint="add --yes")
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise Cancelled("nothing was changed")


def name_and_words(arguments: argparse.Namespace, words: list[str]) -> tuple[str, list[str]]:
    """The VM and the words behind it: with --name, the word in NAME's place is one of them."""
    if arguments.named is not None and arguments.name is not None and arguments.name != arguments.named:
        return arguments.named, [arguments.name, *words]
    return required_name(arguments), words
