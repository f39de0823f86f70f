"""banger image build"""

import argparse
from functools import partial

from banger.cli.connect import client
from banger.cli.operating import add_detach, followed
from banger.cli.parser import Verbs

_EPILOG = """The steps, in this order: packages, --docker, --opencode, copies, scripts. Each that was done before in the
same way, after the same steps, is taken from the cache. With a recipe and flags, lists are joined, the recipe's first;
of single values the flag's counts.

example:  banger image build tools --from debian --packages git,jq --script setup.sh
          banger image build tools.toml"""


def register(verbs: Verbs) -> None:
    verb = verbs.add("build", build, "build an image from another: packages, files, scripts", epilog=_EPILOG)
    verb.add_argument("name", nargs="?", metavar="NAME", help="the new image's name, or a recipe: FILE.toml")
    verb.add_argument("--recipe", metavar="FILE", help="a TOML file with the words of these flags")
    verb.add_argument("--from", dest="base", metavar="BASE", help="the image to begin from")
    verb.add_argument("--size", metavar="SIZE", help="the root disk's size, like 12G (default: the base's)")
    verb.add_argument(
        "--packages", action="append", default=[], metavar="A,B", help="packages of the distribution's own"
    )
    verb.add_argument(
        "--package-file",
        action="append",
        default=[],
        dest="package_files",
        metavar="FILE",
        help="a list of packages, with comments behind #",
    )
    verb.add_argument(
        "--script",
        action="append",
        default=[],
        dest="scripts",
        metavar="FILE",
        help="a program to run as root in the image, with BANGER_BUILD=1",
    )
    verb.add_argument(
        "--copy",
        action="append",
        default=[],
        metavar="SRC:DST",
        help="a file or a directory's content to put at the absolute path DST",
    )
    verb.add_argument(
        "--opencode", action=argparse.BooleanOptionalAction, help="install the opencode server, or do not"
    )
    verb.add_argument("--docker", action=argparse.BooleanOptionalAction, help="install Docker, or do not")
    verb.add_argument("--keep-on-failure", action="store_true", help="keep the VM when a step fails, to look into it")
    verb.add_argument(
        "--no-cache", dest="cache", action="store_false", help="do every step anew; the cache has them afterwards"
    )
    add_detach(verb)


def build(arguments: argparse.Namespace) -> int:
    from banger.cli.recipes import build_spec
    from banger.cli.show import print_built

    if done := followed(arguments, partial(client().build_image, build_spec(arguments))):
        print_built(done)
    return 0
