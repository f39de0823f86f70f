"""How volumes look to a person."""

from collections.abc import Iterable, Mapping, Sequence

from banger.cli.render import facts, table
from banger.model.documents import VmDocument, VolumeDocument
from banger.model.errors import Invalid
from banger.model.names import numbered_name
from banger.model.sizes import show_size


def print_volumes(volumes: Iterable[VolumeDocument]) -> None:
    rows = [
        (
            volume["name"],
            show_size(volume["bytes"]),
            show_size(volume["allocated_bytes"]),
            volume["vm"] or "-",
            volume["image"] or "-",
            volume["created_at"][:19],
        )
        for volume in volumes
    ]
    if not rows:
        print("no volumes yet; `banger vm delete --keep-work-disk` makes one of a VM's work disk")
        return
    table(("NAME", "SIZE", "ON DISK", "FROM VM", "FROM IMAGE", "CREATED"), rows)


def print_volume(volume: VolumeDocument) -> None:
    facts(
        (
            ("name", volume["name"]),
            ("size", f"{show_size(volume['bytes'])}, {show_size(volume['allocated_bytes'])} of it allocated here"),
            ("from VM", volume["vm"]),
            ("from image", volume["image"]),
            ("created", volume["created_at"]),
        )
    )


def volumes_of(vms: Sequence[VmDocument], volumes: Iterable[VolumeDocument]) -> dict[str, str]:
    """What the work disk of each VM, by name, will be called as a volume. Raises `Invalid` for a VM without one."""
    taken = {volume["name"] for volume in volumes}
    named: dict[str, str] = {}
    for vm in vms:
        if not vm["work_disk_bytes"]:
            raise Invalid(f"{vm['name']} has no work disk", hint="delete it without --keep-work-disk")
        named[vm["name"]] = numbered_name(vm["name"], taken)
        taken.add(named[vm["name"]])
    return named


def deletion_question(vms: Sequence[VmDocument], kept: Mapping[str, str]) -> str:
    """What is asked before VMs are deleted: what is lost, and what their work disks become."""
    told = [
        f"{vm['name']} ({vm['state']}"
        + (f"; its work disk becomes the volume {kept[vm['name']]})" if vm["name"] in kept else ")")
        for vm in vms
    ]
    return f"delete {', '.join(told)} and everything {'else ' if kept else ''}on disk?"
