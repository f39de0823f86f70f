"""banger vm: what concerns a VM's disks."""

import argparse
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

from banger.cli.connect import add_name, client, confirm, required_name
from banger.cli.operating import add_detach, run_operation
from banger.cli.parser import Verbs
from banger.model.errors import BangerError


def register(verbs: Verbs) -> None:
    verb = verbs.add(
        "set",
        set_vm,
        "enlarge a VM's work disk, or give it a root disk of another image",
        epilog="The work disk can grow while the VM runs; it never shrinks. Another image needs a stopped VM:\n"
        "what is on its root disk is lost, and /root stays, as it is on the work disk.",
    )
    add_name(verb)
    verb.add_argument("--work-disk", metavar="SIZE", help="the size that the disk with /root shall have, like 20G")
    verb.add_argument("--image", metavar="IMAGE", help="a fresh root disk of this image, the VM's own too")
    verb.add_argument("-y", "--yes", action="store_true", help="do not ask")
    add_detach(verb)
    verb = verbs.add(
        "check",
        check,
        "look for damage in a stopped VM's disks; nothing is changed",
        epilog="Status 0: they are sound; 1: something is wrong, and it is said what. What QEMU or the guest put\n"
        "right by themselves at the next start, as after a power cut, is noted and is no damage.",
    )
    add_name(verb)
    add_detach(verb)


def set_vm(arguments: argparse.Namespace) -> int:
    from banger.model.sizes import parse_size
    from banger.model.vm import VmChange

    size = arguments.work_disk
    change = VmChange(
        work_disk_bytes=None if size is None else parse_size(size, "--work-disk", unit="g"), image=arguments.image
    )
    change.check()
    vm = client().show_vm(required_name(arguments))
    if change.image is not None and not arguments.yes:
        kept = "its work disk, /root, stays" if vm["work_disk_bytes"] else "/root too, as it has no work disk"
        confirm(f"replace all that is on the root disk of {vm['name']} by the image {change.image} ({kept})?")
    return run_operation(arguments, partial(client().set_vm, vm["id"], change))


def check(arguments: argparse.Namespace) -> int:
    from banger.cli.follow import follow
    from banger.cli.main import fail
    from banger.cli.render import print_json

    name = required_name(arguments)
    connection = client()
    if arguments.detach:
        return run_operation(arguments, partial(connection.check_vm, name))
    parts: list[dict[str, Any]] = follow(connection, partial(connection.check_vm, name)).result
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
