"""banger image commit"""

import argparse
from functools import partial

from banger.cli.connect import client
from banger.cli.operating import add_detach, run_operation
from banger.cli.parser import Verbs


def register(verbs: Verbs) -> None:
    verb = verbs.add(
        "commit",
        commit,
        "make an image of a VM's root disk, as it is now",
        epilog="The VM runs on; it stands still while its disk is copied, which is said. What belongs to one\n"
        "machine or person stays out: host keys, the machine id, logs, histories, package caches, and /root, in place\n"
        "of which the image has the home of the image that the VM was made of.",
    )
    verb.add_argument("vm", metavar="VM", help="the VM's name, id or the beginning of the id")
    verb.add_argument("image", metavar="NEWIMAGE", help="the new image's name")
    verb.add_argument(
        "--with-work-disk",
        action="store_true",
        help="with all that is in the VM's /root, whatever secrets are in it, as the home of the image's machines",
    )
    add_detach(verb)


def commit(arguments: argparse.Namespace) -> int:
    from banger.cli.show import print_image
    from banger.model.commit import CommitSpec

    spec = CommitSpec(vm=arguments.vm, name=arguments.image, with_work_disk=arguments.with_work_disk)
    return run_operation(arguments, partial(client().commit_image, spec), print_image)
