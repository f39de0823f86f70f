"""banger capacity"""

import argparse

from banger.cli.connect import client
from banger.cli.parser import Parser, add_common


def register(parser: Parser) -> None:
    add_common(parser)
    parser.set_defaults(handler=capacity, parser=parser)


def capacity(arguments: argparse.Namespace) -> int:
    from banger.cli.capacity import print_capacity
    from banger.cli.render import print_json

    found = client().capacity()
    print_json(found) if arguments.json else print_capacity(found)
    return 0
