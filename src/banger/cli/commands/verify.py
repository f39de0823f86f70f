"""banger verify"""

import argparse

from banger.cli.parser import Parser, add_common

TIMEOUT_S = 300.0


def register(parser: Parser) -> None:
    add_common(parser)
    parser.add_argument("--image", default="debian", help="the image to try (default: debian)")
    parser.add_argument(
        "--timeout",
        type=float,
        default=TIMEOUT_S,
        metavar="S",
        help=f"how long all waits for boots may take together (default: {TIMEOUT_S:g})",
    )
    parser.add_argument("--keep", action="store_true", help="keep the VM when a step fails")
    parser.set_defaults(handler=verify, parser=parser)


def verify(arguments: argparse.Namespace) -> int:
    from banger.cli.verify import run_verify

    return run_verify(arguments)
