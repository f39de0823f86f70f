"""What commands share that begin an operation: following it, and --detach."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from banger.cli.connect import client
from banger.cli.parser import Parser

if TYPE_CHECKING:
    from banger.model.operation import Operation


def add_detach(verb: Parser) -> None:
    verb.add_argument("-d", "--detach", action="store_true", help="return at once with the operation's id")


def run_operation(
    arguments: argparse.Namespace,
    begin: Callable[[], Operation],
    show: Callable[[Any], None] | None = None,
    *,
    quiet: bool = False,
) -> int:
    """Begin, follow, and `show` the result (a VM, unless told otherwise); with --detach print the operation.

    `quiet`: its stages are not told.
    """
    from banger.cli.show import print_vm

    done = followed(arguments, begin, quiet=quiet)
    if done is not None and done.result is not None:
        (show or print_vm)(done.result)
    return 0


def followed(arguments: argparse.Namespace, begin: Callable[[], Operation], *, quiet: bool = False) -> Operation | None:
    """The operation at its end, for a person to be shown; None when what was asked for is printed, as by --json."""
    from banger.cli.follow import follow
    from banger.cli.render import print_json
    from banger.cli.show import print_operation

    operation = begin() if arguments.detach else follow(client(), begin, quiet=quiet)
    if arguments.json:
        print_json(operation if arguments.detach or operation.result is None else operation.result)
    elif arguments.detach:
        print_operation(operation)
    else:
        return operation
    return None


def delete_each(
    arguments: argparse.Namespace,
    doomed: Iterable[tuple[str, Callable[[], Operation]]],
    besides: Callable[[Any], str] = lambda result: "",
) -> int:
    """Begin and follow each deletion, told by its name, one after the other; `besides` is what its result adds."""
    from banger.cli.follow import follow
    from banger.cli.render import print_json

    operations = []
    for name, begin in doomed:
        operation = begin() if arguments.detach else follow(client(), begin, quiet=arguments.json)
        operations.append(operation)
        said = "being deleted" if arguments.detach else "deleted"
        print(f"{name}: {said}{besides(operation.result)}", file=sys.stderr)
    if arguments.json:
        print_json(operations)
    return 0
