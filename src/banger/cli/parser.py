"""The command line's grammar. argparse, because it starts in 10 ms (docs/decisions.md has the figures)."""

import argparse
import difflib
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any, NoReturn, Protocol

from banger.model.errors import Invalid

NOUNS = {
    "vm": "virtual machines: create, list, show, start, stop, set, delete, exec, ssh, cp, forward, health, check, logs",
    "volume": "work disks that belong to no VM: list, show, attach, delete",
    "image": "bootstrap, build, register, promote, commit, list, show, verify, rename, delete, prune, export, import",
    "engine": "what runs the machines: list, install, remove",
    "config": "settings: show",
    "capacity": "what VMs take of this host's disk, memory and processors, and what is left",
    "verify": "try everything once, with a VM that is made and deleted",
    "operation": "what the daemon is doing and has done: list, show, wait, cancel",
    "daemon": "the background process: run, status, stop",
    "version": "versions of banger and its daemon",
    "completion": "a completion script for your shell",
}

Handler = Callable[[argparse.Namespace], int]


class Noun(Protocol):
    """What a module of `banger.cli.commands` has."""

    def register(self, parser: "Parser") -> None: ...


class Parser(argparse.ArgumentParser):
    """argparse with our errors: one line, a hint, exit code 2."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("allow_abbrev", False)
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(*args, **kwargs)

    def error(self, message: str) -> NoReturn:
        raise Invalid(message, hint=f"`{self.prog} --help` shows the usage")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        choices = [str(choice) for choice in action.choices or ()]
        if choices and str(value) not in choices:
            near = difflib.get_close_matches(str(value), choices, 1)
            what = action.metavar or action.dest
            hint = f"did you mean {near[0]}?" if near else f"choose from {', '.join(choices)}"
            raise Invalid(f"{value!r} is no {what} of `{self.prog}`", hint=hint)

    def parse_words(self, words: Sequence[str]) -> argparse.Namespace:
        """Parse all words. Raises `Invalid`, with the nearest flag as the hint."""
        parsed, rest = self.parse_known_args(words)
        if (more := getattr(parsed, "more", "")) and not any(word.startswith("-") for word in rest):
            # argparse gives a list nothing of what stands behind a flag: `ssh NAME -u USER COMMAND`
            setattr(parsed, more, [*getattr(parsed, more), *rest])
            rest = []
        if rest:
            where = getattr(parsed, "parser", self)
            flags = [flag for action in where._actions for flag in action.option_strings]
            near = difflib.get_close_matches(rest[0].split("=")[0], flags, 1)
            raise Invalid(
                f"`{where.prog}` does not take {rest[0]!r}",
                hint=f"did you mean {near[0]}?" if near else f"`{where.prog} --help` shows what it takes",
            )
        return parsed


def common() -> Parser:
    """Flags that every command has."""
    shared = Parser(add_help=False)
    shared.add_argument("--json", action="store_true", help="print one JSON document on stdout, and nothing else there")
    shared.add_argument("--debug", action="store_true", help="show tracebacks")
    return shared


def add_common(parser: Parser) -> None:
    """The same flags for a noun that is a command itself."""
    for action in common()._actions:
        parser._add_action(action)


class Verbs:
    """The verbs of one noun."""

    def __init__(self, parser: Parser) -> None:
        self._subparsers = parser.add_subparsers(metavar="verb", required=True)
        self._common = common()

    def add(self, name: str, handler: Handler, help: str, epilog: str | None = None) -> Parser:
        """A verb; `help` is its one line, and the first line of its own help."""
        verb = self._subparsers.add_parser(
            name,
            help=help,
            description=help[0].upper() + help[1:] + ".",
            epilog=epilog,
            parents=[self._common],
        )
        verb.set_defaults(handler=handler, parser=verb)
        return verb


def build(nouns: Sequence[str]) -> Parser:
    """The parser with the given nouns filled in; the others have only their line in the help."""
    parser = Parser(
        prog="banger",
        description="Real, disposable Linux machines on your own hardware.",
        epilog="Begin with:  banger image bootstrap debian\n             banger vm create --name demo",
    )
    parser.add_argument("--version", action="store_true", help="print the version")
    subparsers = parser.add_subparsers(metavar="noun", parser_class=Parser)
    for noun, text in NOUNS.items():
        child = subparsers.add_parser(noun, help=text, description=text[0].upper() + text[1:] + ".")
        if noun in nouns:
            module: Noun = import_module(f"banger.cli.commands.{noun}")
            module.register(child)
    return parser


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse a command line; words behind `--` are kept apart as `tail`. Raises `Invalid`."""
    words, tail = list(argv), []
    if "--" in words:
        words, tail = words[: words.index("--")], words[words.index("--") + 1 :]
    noun = next((word for word in words if not word.startswith("-")), "")
    parser = build([noun])
    arguments = parser.parse_words(words)
    if tail and not getattr(arguments, "takes_tail", False):
        raise Invalid("this command takes nothing behind `--`", hint=f"`{parser.prog} {noun} --help` shows the usage")
    arguments.tail = tail
    if not hasattr(arguments, "handler"):
        if not getattr(arguments, "version", False):
            parser.print_help(sys.stderr)
            raise SystemExit(2)
        arguments.handler = _version
        arguments.json = arguments.debug = False
    return arguments


def _version(_: argparse.Namespace) -> int:
    from banger import __version__

    print(f"banger {__version__}")
    return 0
