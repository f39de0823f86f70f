"""banger vm: what concerns a VM's disks."""

import argparse

from banger.cli.connect import add_name, client, required_name
from banger.cli.operating import add_detach, confirm, run_operation
from banger.cli.parser import Verbs


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
    return run_operation(arguments, client().set_vm(vm["id"], change))
