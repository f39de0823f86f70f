"""banger completion"""

import argparse

from banger.cli.parser import NOUNS, Parser, build


def register(parser: Parser) -> None:
    parser.epilog = 'for bash:  eval "$(banger completion bash)"'
    parser.add_argument("shell", choices=("bash", "zsh", "tcsh"), metavar="SHELL", help="bash, zsh or tcsh")
    parser.set_defaults(handler=completion, parser=parser)


def completion(arguments: argparse.Namespace) -> int:
    """Print a static script: completing costs no start of banger."""
    import shtab

    print(shtab.complete(build(list(NOUNS)), arguments.shell))
    return 0
