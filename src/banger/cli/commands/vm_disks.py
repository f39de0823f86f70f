"""banger vm: the verbs that concern a VM's disks."""

import argparse
from collections.abc import Iterable, Mapping
from typing import Any

from banger.cli.connect import add_name, client, required_name
from banger.cli.parser import Verbs
from banger.model.errors import BangerError


def register(verbs: Verbs) -> None:
    verb = verbs.add(
        "check",
        check,
        "look for damage in a stopped VM's disks; nothing is changed",
        epilog="Status 0: they are sound; 1: something is wrong, and it is said what. What QEMU or the guest put\n"
        "right by themselves at the next start, as after a power cut, is noted and is no damage.",
    )
    add_name(verb)
    verb.add_argument("-d", "--detach", action="store_true", help="return at once with the operation's id")


def check(arguments: argparse.Namespace) -> int:
    from banger.cli.follow import follow
    from banger.cli.main import fail
    from banger.cli.render import print_json
    from banger.cli.show import print_operation

    name = required_name(arguments)
    connection = client()
    operation = connection.check_vm(name)
    if arguments.detach:
        print_json(operation) if arguments.json else print_operation(operation)
        return 0
    parts: list[dict[str, Any]] = follow(connection, operation).result
    print_json(parts) if arguments.json else _print_parts(parts)
    if damaged := [part["part"] for part in parts if not part["ok"]]:
        hint = f"`banger vm start {name}` may still let you copy out what you need"
        if damaged == ["root disk"] and len(parts) > 1:
            hint = f"`banger vm delete --keep-work-disk {name}` keeps its work disk, for another VM"
        # what was found is on stdout already
        return fail(
            BangerError(f"damage was found in {name}: {', '.join(damaged)}", hint=hint), as_json=False, debug=False
        )
    return 0


def _print_parts(parts: Iterable[Mapping[str, Any]]) -> None:
    for part in parts:
        notes = f" ({'; '.join(part['notes'])})" if part["notes"] else ""
        print(f"{part['part']}: {'ok' if part['ok'] else 'damaged'}{notes}")
