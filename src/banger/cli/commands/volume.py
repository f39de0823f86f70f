"""banger volume"""

import argparse
from functools import partial

from banger.cli.connect import add_name, client, confirm, name_of
from banger.cli.operating import add_detach, delete_each, run_operation
from banger.cli.parser import Parser, Verbs
from banger.model.errors import Invalid


def register(parser: Parser) -> None:
    verbs = Verbs(parser)
    verb = verbs.add("list", list_volumes, "list the volumes")
    verb.add_argument("-q", "--quiet", action="store_true", help="names only")
    add_name(verbs.add("show", show, "show one volume"), "the volume")
    verb = verbs.add(
        "attach",
        attach,
        "make a volume the work disk of a stopped VM that has none; it is no volume any more then",
        epilog="The VM finds it at /root from its next start on.\n"
        "A new VM gets one by `banger vm create --volume VOLUME`; `banger vm delete --keep-work-disk` makes one.\n"
        "example:  banger volume attach notes demo",
    )
    verb.add_argument("words", nargs="*", metavar="VOLUME VM", help="the volume; the VM by name, id, or its beginning")
    verb.add_argument("--volume", metavar="VOLUME", help="the volume, as a flag")
    verb.add_argument("--vm", metavar="VM", help="the VM, as a flag")
    add_detach(verb)
    verb = verbs.add("delete", delete, "delete volumes and everything on them")
    verb.add_argument("names", nargs="*", metavar="NAME", help="the volumes")
    verb.add_argument("--name", dest="named", action="append", default=[], metavar="NAME", help="the same, as a flag")
    verb.add_argument("-y", "--yes", action="store_true", help="do not ask")
    verb.add_argument("-d", "--detach", action="store_true", help="return at once with the operations' ids")


def list_volumes(arguments: argparse.Namespace) -> int:
    from banger.cli.render import print_json
    from banger.cli.volumes import print_volumes

    volumes = client().list_volumes()
    if arguments.json:
        print_json(volumes)
    elif arguments.quiet:
        for volume in volumes:
            print(volume["name"])
    else:
        print_volumes(volumes)
    return 0


def show(arguments: argparse.Namespace) -> int:
    from banger.cli.render import print_json
    from banger.cli.volumes import print_volume

    name = name_of(arguments, required=False)
    if name is None:
        raise _none_named()
    volume = client().show_volume(name)
    print_json(volume) if arguments.json else print_volume(volume)
    return 0


def attach(arguments: argparse.Namespace) -> int:
    volume, vm = volume_and_vm(arguments)
    return run_operation(arguments, partial(client().attach_volume, volume, vm))


def volume_and_vm(arguments: argparse.Namespace) -> tuple[str, str]:
    """What flags did not name is taken from the words, in order."""
    words = list(arguments.words)
    volume = arguments.volume if arguments.volume is not None else words.pop(0) if words else None
    vm = arguments.vm if arguments.vm is not None else words.pop(0) if words else None
    if volume is None:
        raise _none_named()
    if vm is None:
        raise Invalid("no VM was named", hint="`banger vm list` shows what there is")
    if words:
        raise Invalid(f"one volume and one VM are wanted, and there is {words[0]!r} as well", hint="leave it out")
    return volume, vm


def _none_named() -> Invalid:
    return Invalid("no volume was named", hint="`banger volume list` shows what there is")


def delete(arguments: argparse.Namespace) -> int:
    names = list(dict.fromkeys([*arguments.names, *arguments.named]))
    if not names:
        raise _none_named()
    connection = client()
    told = [f"{name} (damaged)" if _is_damaged(name) else name for name in names]
    if not arguments.yes:
        confirm(f"delete the volume{'s' if len(told) > 1 else ''} {', '.join(told)} and everything on disk?")
    return delete_each(arguments, [(name, partial(connection.delete_volume, name)) for name in names])


def _is_damaged(name: str) -> bool:
    """Such a one can be deleted too. Raises `NotFound` when there is no such volume."""
    try:
        client().show_volume(name)
    except Invalid:
        return True
    return False
