"""banger image"""

import argparse
from functools import partial

from banger.cli.commands import image_build, image_catalogue, image_commit, image_move, image_register
from banger.cli.connect import client
from banger.cli.operating import run_operation
from banger.cli.parser import Parser, Verbs


def register(parser: Parser) -> None:
    verbs = Verbs(parser)
    verb = verbs.add("bootstrap", bootstrap, "build a distribution's image from its own packages")
    verb.add_argument("distro", choices=("debian",), metavar="DISTRO", help="debian")
    verb.add_argument("--name", help="the image's name (default: DISTRO, or DISTRO-minimal)")
    verb.add_argument("--mirror", metavar="URL", help="where packages come from (default: as this host gets them)")
    verb.add_argument("--minimal", action="store_true", help="without the dev baseline (git, compiler, editors, ...)")
    verb.add_argument(
        "--opencode",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="with the opencode server, or without (default: with it, unless --minimal)",
    )
    verb.add_argument("--offline", action="store_true", help="use what the cache has, without trying to reach anybody")
    verb.add_argument("-d", "--detach", action="store_true", help="return at once with the operation's id")
    image_build.register(verbs)
    image_catalogue.register(verbs)
    image_register.register(verbs)
    verb = verbs.add(
        "verify",
        verify,
        "compare an image's parts with their digests and check its filesystems; changes nothing",
        epilog="Exits with 1 when something is wrong, and names every part that is.",
    )
    verb.add_argument("name", metavar="NAME", help="the image")
    image_commit.register(verbs)
    image_move.register(verbs)


def bootstrap(arguments: argparse.Namespace) -> int:
    from banger.cli.show import print_image

    spec = {
        "distro": arguments.distro,
        "name": arguments.name,
        "mirror": arguments.mirror,
        "minimal": arguments.minimal,
        "opencode": arguments.opencode,
        "offline": arguments.offline,
    }
    return run_operation(arguments, partial(client().bootstrap_image, spec), print_image)


def verify(arguments: argparse.Namespace) -> int:
    from banger.cli.follow import follow
    from banger.cli.render import print_json
    from banger.cli.show import print_verified

    connection = client()
    operation = follow(connection, lambda: connection.verify_image(arguments.name))
    print_json(operation.result) if arguments.json else print_verified(operation.result)
    return 0
