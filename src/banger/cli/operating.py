"""What commands share that begin an operation on a VM: following it, --detach, and asking before data is destroyed."""

import argparse
import sys

from banger.cli.connect import client
from banger.cli.parser import Parser
from banger.model.errors import Cancelled, Invalid


def add_detach(verb: Parser) -> None:
    verb.add_argument("-d", "--detach", action="store_true", help="return at once with the operation's id")


def run_operation(arguments: argparse.Namespace, operation: object) -> int:
    """Follow an operation and print its VM, or with --detach the operation."""
    from banger.cli.follow import follow
    from banger.cli.render import print_json
    from banger.cli.show import print_operation, print_vm
    from banger.model.operation import Operation

    assert isinstance(operation, Operation)
    if not arguments.detach:
        operation = follow(client(), operation)
    document = operation if arguments.detach or operation.result is None else operation.result
    if arguments.json:
        print_json(document)
    elif arguments.detach:
        print_operation(operation)
    elif operation.result is not None:
        print_vm(operation.result)
    return 0


def confirm(question: str) -> None:
    """Ask on a terminal; elsewhere `Invalid` names --yes."""
    if not sys.stdin.isatty():
        raise Invalid("this destroys data and nobody can be asked", hint="add --yes")
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise Cancelled("nothing was changed")
