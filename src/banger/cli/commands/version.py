"""banger version"""

import argparse

from banger import __version__
from banger.cli.connect import client
from banger.cli.parser import Parser, add_common


def register(parser: Parser) -> None:
    add_common(parser)
    parser.set_defaults(handler=version, parser=parser)


def version(arguments: argparse.Namespace) -> int:
    """Our version, and the daemon's when one runs."""
    from banger.cli.render import print_json
    from banger.client.transport import DaemonUnreachable

    try:
        daemon = client(start=False).daemon_status().version
    except DaemonUnreachable:
        daemon = None
    if arguments.json:
        print_json({"banger": __version__, "daemon": daemon})
    else:
        print(f"banger {__version__}")
        print(f"daemon {daemon or 'not running'}")
    return 0
