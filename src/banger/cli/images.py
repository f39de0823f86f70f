"""How the images as a whole look to a person."""

import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from banger.cli.render import table
from banger.cli.show import kind_of, least_memory
from banger.model.sizes import show_size
from banger.model.text import harmless


def print_images(images: Iterable[Mapping[str, Any]]) -> None:
    images = tuple(images)
    if not images:
        print("no images yet; `banger image bootstrap debian` makes one")
        return
    sound = [image for image in images if not image["problem"]]
    if sound:
        table(("NAME", "KIND", "DISTRO", "SIZE", "ON DISK", "MEMORY", "USED BY"), map(_row, sound))
    for image in images:
        if image["problem"]:
            print(f"{image['problem']}; `banger image verify {image['name']}` says more", file=sys.stderr)


def _row(image: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        image["name"],
        kind_of(image),
        harmless(f"{image['distro']} {image['release']}".strip()) or "-",
        show_size(image["parts"]["root"]["bytes"]),
        show_size(image["allocated_bytes"]),
        f"{show_size(least)}+" if (least := least_memory(image)) else "-",
        _in_short(image["vms"]),
    )


def _in_short(names: Sequence[str]) -> str:
    """The first name, and how many more there are."""
    return f"{names[0]} +{len(names) - 1}" if len(names) > 1 else names[0] if names else "-"


def print_pruned(pruned: Mapping[str, Any]) -> None:
    rows = [(one["kind"], str(one["files"]), show_size(one["bytes"]), one["left"]) for one in pruned["kinds"]]
    table(("KIND", "FILES", "BYTES", ""), rows)
    what = "would be removed" if pruned["dry_run"] else "removed"
    print(f"{show_size(pruned['bytes'])} {what}")
