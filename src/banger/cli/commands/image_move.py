"""banger image export, import"""

import argparse
import os
import sys
from functools import partial
from pathlib import Path

from banger.cli.connect import client
from banger.cli.operating import add_detach, followed, run_operation
from banger.cli.parser import Verbs
from banger.model.errors import Invalid


def register(verbs: Verbs) -> None:
    verb = verbs.add(
        "export",
        export,
        "pack an image into one file, which `banger image import` takes on another machine",
        epilog="`tar --zstd -xf FILE` unpacks it as well.\n"
        "example:  banger image export debian -o - | ssh other banger image import -",
    )
    verb.add_argument("name", metavar="NAME", help="the image")
    verb.add_argument("-o", "--output", metavar="FILE", help="default: NAME.banger.tar.zst here; - is standard output")
    verb.add_argument("-f", "--force", action="store_true", help="replace a file that is there already")
    add_detach(verb)
    verb = verbs.add(
        "import",
        import_image,
        "make an image of an archive, whose every byte is checked first",
        epilog="FILE may also be an OCI layout (a directory, or a tar of it) or what `docker save` writes.\n"
        "An interrupted import of banger's own archive keeps the parts that were complete; importing it again goes on\n"
        "with them.",
    )
    verb.add_argument("file", metavar="FILE", help="what `banger image export` wrote; - is standard input")
    verb.add_argument("--name", metavar="NEW", help="the image's name here (default: as it was called there)")
    verb.add_argument("--check", action="store_true", help="only look whether the archive is whole and sound")
    oci = verb.add_argument_group("for OCI and docker images")
    oci.add_argument("--tag", metavar="TAG", default="", help="which of several images, by tag or digest")
    oci.add_argument("--kernel-from", metavar="IMAGE", help="whose kernel it gets (default: the newest of Debian)")
    oci.add_argument("--size", metavar="SIZE", help="of the root disk (default: 4G, or more where needed)")
    oci.add_argument("--no-install", action="store_true", help="run nothing of the image here; refuse what is missing")
    add_detach(verb)


def export(arguments: argparse.Namespace) -> int:
    from banger.model.sizes import show_size

    stream = arguments.output == "-"
    if stream:
        if arguments.json or arguments.detach:
            raise Invalid("the archive goes to standard output, and nothing else can", hint="leave out --json and -d")
        if sys.stdout.isatty():
            raise Invalid("an archive is nothing for a terminal", hint="name a file with --output, or pipe it")
        path = f"/proc/{os.getpid()}/fd/{sys.stdout.fileno()}"
    else:
        path = str(Path.cwd() / (arguments.output or f"{arguments.name}.banger.tar.zst"))
    spec = {"path": path, "force": arguments.force, "stream": stream}
    done = followed(arguments, partial(client().export_image, arguments.name, spec))
    if done is not None and not stream:
        made = done.result
        print(f"{made['path']}: {show_size(made['bytes'])}, {show_size(made['image_bytes'])} before compression")
    return 0


def import_image(arguments: argparse.Namespace) -> int:
    from banger.cli.show import print_image, print_verified

    spec = {"path": _path(arguments), "name": arguments.name, "check": arguments.check, "oci": _oci(arguments)}
    show = print_verified if arguments.check else print_image
    return run_operation(arguments, partial(client().import_image, spec), show)


def _oci(arguments: argparse.Namespace) -> dict[str, object] | None:
    """What is only for OCI images; None when nothing of it was said."""
    from banger.model.sizes import parse_size

    if not (arguments.tag or arguments.kernel_from or arguments.size or arguments.no_install):
        return None
    size = parse_size(arguments.size, "the root disk", unit="M") if arguments.size else None
    install = not arguments.no_install
    return {"tag": arguments.tag, "kernel_from": arguments.kernel_from, "size_bytes": size, "install": install}


def _path(arguments: argparse.Namespace) -> str:
    """As the daemon can open it: what only this process has open, it finds among this process's files."""
    if arguments.file == "-":
        if sys.stdin.isatty():
            raise Invalid("an archive is nothing to type", hint="name a file, or pipe it")
        descriptor = sys.stdin.fileno()
    else:
        path = Path(arguments.file)
        if path.is_file() or path.is_dir() or not path.exists():
            return str(path.resolve())
        descriptor = os.open(arguments.file, os.O_RDONLY)
    if arguments.detach:
        raise Invalid("a pipe ends with this command, which must wait then", hint="leave out -d")
    return f"/proc/{os.getpid()}/fd/{descriptor}"
