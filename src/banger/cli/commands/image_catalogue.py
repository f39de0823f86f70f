"""banger image: list, show, rename, delete, prune"""

import argparse
from functools import partial

from banger.cli.connect import client, confirm
from banger.cli.operating import add_detach, delete_each, run_operation
from banger.cli.parser import Verbs
from banger.model.errors import Invalid


def register(verbs: Verbs) -> None:
    verb = verbs.add("list", list_images, "list the images")
    verb.add_argument("-q", "--quiet", action="store_true", help="names only")
    verb = verbs.add("show", show, "show one image: what it is, what it needs, who uses it, and its parts")
    verb.add_argument("name", metavar="NAME", help="the image")
    verb = verbs.add("rename", rename, "give an image that no VM uses another name")
    verb.add_argument("name", metavar="OLD", help="the image")
    verb.add_argument("new", metavar="NEW", help="its new name")
    add_detach(verb)
    verb = verbs.add(
        "delete",
        delete,
        "delete images that no VM uses",
        epilog="Of a registered image, files that lie elsewhere stay.\n"
        "example:  banger image delete old-debian scratch --yes",
    )
    verb.add_argument("names", nargs="*", metavar="NAME", help="the images")
    verb.add_argument("--name", dest="named", action="append", default=[], metavar="NAME", help="the same, as a flag")
    verb.add_argument("--force", action="store_true", help="also where other images were made of it; they stay")
    verb.add_argument("-y", "--yes", action="store_true", help="do not ask")
    verb.add_argument("-d", "--detach", action="store_true", help="return at once with the operations' ids")
    verb = verbs.add(
        "prune",
        prune,
        "remove what can be made again: old layers of builds, what imports left, replaced parts; never an image",
        epilog="What an operation that is under way may use is left alone, and said.",
    )
    verb.add_argument("--all", action="store_true", help="every layer, and all downloads and packages too")
    verb.add_argument("--dry-run", action="store_true", help="only say what would go")
    add_detach(verb)


def list_images(arguments: argparse.Namespace) -> int:
    from banger.cli.images import print_images
    from banger.cli.render import print_json

    images = client().list_images()
    if arguments.json:
        print_json(images)
    elif arguments.quiet:
        for image in images:
            print(image["name"])
    else:
        print_images(images)
    return 0


def show(arguments: argparse.Namespace) -> int:
    from banger.cli.render import print_json
    from banger.cli.show import print_image

    image = client().show_image(arguments.name)
    print_json(image) if arguments.json else print_image(image)
    return 0


def rename(arguments: argparse.Namespace) -> int:
    from banger.cli.show import print_image

    return run_operation(arguments, partial(client().rename_image, arguments.name, arguments.new), print_image)


def delete(arguments: argparse.Namespace) -> int:
    names = list(dict.fromkeys([*arguments.names, *arguments.named]))
    if not names:
        raise Invalid("no image was named", hint="`banger image list` shows what there is")
    connection = client()
    told = [_described(name) for name in names]
    if not arguments.yes:
        confirm(f"delete the image{'s' if len(told) > 1 else ''} {', '.join(told)} from the disk?")
    doomed = [(name, partial(connection.delete_image, name, force=arguments.force)) for name in names]
    return delete_each(arguments, doomed)


def _described(name: str) -> str:
    """What is asked about; a damaged image can be deleted too. Raises `NotFound` when there is no such image."""
    try:
        image = client().show_image(name)
    except Invalid:
        return f"{name} (damaged)"
    return name if image["managed"] else f"{name} (registered; its own files stay)"


def prune(arguments: argparse.Namespace) -> int:
    from banger.cli.images import print_pruned

    begin = partial(client().prune_images, everything=arguments.all, dry_run=arguments.dry_run)
    return run_operation(arguments, begin, print_pruned, quiet=arguments.json)
