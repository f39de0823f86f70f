"""banger image: register, promote"""

import argparse
from functools import partial
from pathlib import Path

from banger.cli.connect import client
from banger.cli.operating import add_detach, run_operation
from banger.cli.parser import Verbs

_FILES = (
    ("rootfs", "FILE", "the root filesystem: an ext4 in a file, no partition table"),
    ("kernel", "FILE", "the kernel: a vmlinux or a bzImage"),
    ("initramfs", "FILE", "its initramfs (default: banger's, made of the modules)"),
    ("modules", "DIR", "the kernel's modules, lib/modules/RELEASE (default: those in the root)"),
    ("packages", "FILE", "what is installed in it: a packages.json, or what dpkg-query -W prints"),
    ("kernel-config", "FILE", "how the kernel was configured (default: wherever that is found)"),
)
_WORDS = (
    ("boot-args", "WORDS", "the kernel's command line (default: banger's own)"),
    ("distro", "NAME", "the distribution (default: as the root says)"),
    ("release", "NAME", "its release (default: as the root says)"),
)


def register(verbs: Verbs) -> None:
    verb = verbs.add(
        "register",
        register_image,
        "make an image of files that stay where they are, after each was looked at",
        epilog="The same files again change nothing. A name alone looks at the files of that image again: where they\n"
        "were touched or copied and are the same, they are good again.\n"
        "example:  banger image register mine --rootfs root.ext4 --kernel vmlinuz",
    )
    verb.add_argument("name", metavar="NAME", help="the image's name")
    for flag, value, text in (*_FILES, *_WORDS):
        verb.add_argument(f"--{flag}", metavar=value, help=text)
    verb.add_argument("--replace", action="store_true", help="other files may take the place of those of that name")
    add_detach(verb)
    verb = verbs.add(
        "promote",
        promote,
        "copy the files of a registered image in, so that it is banger's own",
        epilog="VMs of it go on, and need the registered files no more: a root disk that lies over one lies over the\n"
        "copy from its next start on. With --as, they stay with the registered image, which stays too.",
    )
    verb.add_argument("name", metavar="NAME", help="the image")
    verb.add_argument("--as", dest="new", metavar="NEW", help="leave the image as it is, and make another of this name")
    add_detach(verb)


def register_image(arguments: argparse.Namespace) -> int:
    spec: dict[str, object] = {"name": arguments.name, "replace": arguments.replace}
    for flag, _, _ in _FILES:
        path = getattr(arguments, flag.replace("-", "_"))
        # where we are, the daemon is not
        spec[flag.replace("-", "_")] = None if path is None else str(Path(path).absolute())
    for flag, _, _ in _WORDS:
        spec[flag.replace("-", "_")] = getattr(arguments, flag.replace("-", "_"))
    from banger.cli.show import print_image

    return run_operation(arguments, partial(client().register_image, spec), print_image)


def promote(arguments: argparse.Namespace) -> int:
    from banger.cli.show import print_image

    return run_operation(arguments, partial(client().promote_image, arguments.name, arguments.new), print_image)
