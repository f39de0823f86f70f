"""What commands share that begin an operation on a VM: following it, and --detach."""

import argparse

from banger.cli.connect import client
from banger.cli.parser import Parser


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
