"""banger operation"""

import argparse

from banger.cli.connect import client
from banger.cli.parser import Parser, Verbs


def register(parser: Parser) -> None:
    verbs = Verbs(parser)
    verb = verbs.add("list", list_operations, "list operations, the newest first")
    verb.add_argument("-n", "--limit", type=int, default=20, metavar="N", help="how many (default: 20)")
    for name, handler, text in (
        ("show", show, "show one operation and its stages"),
        ("wait", wait, "watch an operation until it ends; Ctrl-C leaves it running"),
        ("cancel", cancel, "ask an operation to stop and take back what it did"),
    ):
        verb = verbs.add(name, handler, text)
        verb.add_argument("id", metavar="ID", help="the operation's id, or its beginning")


def list_operations(arguments: argparse.Namespace) -> int:
    from banger.cli.render import print_json
    from banger.cli.show import print_operations

    operations = client().list_operations(arguments.limit)
    print_json(operations) if arguments.json else print_operations(operations)
    return 0


def _print(arguments: argparse.Namespace, operation: object) -> int:
    from banger.cli.render import print_json
    from banger.cli.show import print_operation
    from banger.model.operation import Operation

    assert isinstance(operation, Operation)
    print_json(operation) if arguments.json else print_operation(operation)
    return 0


def show(arguments: argparse.Namespace) -> int:
    return _print(arguments, client().show_operation(arguments.id))


def wait(arguments: argparse.Namespace) -> int:
    from banger.cli.follow import follow

    connection = client()
    operation = connection.show_operation(arguments.id)
    return _print(arguments, follow(connection, lambda: operation, cancel_on_interrupt=False))


def cancel(arguments: argparse.Namespace) -> int:
    from banger.model.errors import Conflict
    from banger.model.operation import OperationState

    connection = client()
    operation = connection.show_operation(arguments.id)
    if operation.state is not OperationState.RUNNING:
        raise Conflict(f"the operation has ended already: {operation.state}")
    connection.cancel_operation(operation.id)
    for _ in connection.follow(operation.id):
        pass
    return _print(arguments, connection.show_operation(operation.id))
