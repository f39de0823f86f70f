"""How capacity looks to a person: what can still be used first, then who has the rest, the largest first."""

from banger.cli.render import facts, table
from banger.model.capacity import Capacity, DiskCapacity, ImageCapacity, VmCapacity, VolumeCapacity
from banger.model.sizes import MIB, show_size
from banger.model.text import harmless


def print_capacity(capacity: Capacity) -> None:
    cpu, memory, disk, total = capacity.cpu, capacity.memory, capacity.disk, capacity.total
    running = f"{total.running} of {total.vms} VMs run"
    facts(
        (
            ("disk", _room(disk)),
            ("", _takers(disk)),
            ("promised", _promised(disk)),
            ("memory", f"{_of(memory.reserved_mib * MIB, memory.host_mib * MIB)}, {_times(memory.overcommit)}"),
            ("vcpu", f"{cpu.reserved} of {cpu.host} reserved, {_times(cpu.overcommit)}; {running}"),
        )
    )
    if disk.elsewhere_bytes:
        print(f"on other filesystems: {show_size(disk.elsewhere_bytes)} more, not counted above")
    if capacity.vms or capacity.images or capacity.volumes:
        print()
        _print_takers(capacity)


def _room(disk: DiskCapacity) -> str:
    free = f"{show_size(disk.free_bytes)} free of {show_size(disk.total_bytes)}"
    reserve = show_size(disk.reserve_bytes)
    if disk.free_bytes < disk.reserve_bytes:
        return f"full, no VM can be created or started: {free}, and {reserve} must stay free"
    return f"{show_size(disk.room_bytes)} can be used: {free}, {reserve} of it the reserve"


def _takers(disk: DiskCapacity) -> str:
    kept = f", {show_size(disk.kept_bytes)} kept by the filesystem" if disk.kept_bytes else ""
    return (
        f"{show_size(disk.vms_bytes)} VMs, {show_size(disk.images_bytes)} images, "
        f"{show_size(disk.volumes_bytes)} volumes, {show_size(disk.others_bytes)} others{kept}"
    )


def _promised(disk: DiskCapacity) -> str:
    return f"disks of {show_size(disk.promised_bytes)} in all, {_times(disk.overcommit)}" if disk.promised_bytes else ""


def _of(part: int, whole: int) -> str:
    return f"{show_size(part)} of {show_size(whole)} reserved"


def _times(overcommit: float) -> str:
    return f"{overcommit:.2f} times what there is" if overcommit > 1 else f"{overcommit:.0%}"


def _print_takers(capacity: Capacity) -> None:
    rows = [
        (vm.name, vm.state.value, str(vm.vcpu), show_size(vm.memory_mib * MIB), show_size(_own(vm)), _shared(vm))
        for vm in sorted(capacity.vms, key=_own, reverse=True)
    ]
    total = capacity.total
    if len(rows) > 1:
        shared = total.allocated_bytes - total.own_bytes
        rows.append(
            (
                "all VMs",
                "",
                str(total.vcpu),
                show_size(total.memory_mib * MIB),
                show_size(total.own_bytes),
                show_size(shared) if shared else "-",
            )
        )
    for noun, others in (("image", capacity.images), ("volume", capacity.volumes)):
        rows += [
            (harmless(f"{noun} {other.name}"), "", "", "", show_size(_own(other)), _shared(other)) for other in others
        ]
    table(("NAME", "STATE", "VCPU", "MEMORY", "DISK", "SHARED"), rows)


def _own(one: VmCapacity | ImageCapacity | VolumeCapacity) -> int:
    return one.allocated_bytes - one.shared_bytes


def _shared(one: VmCapacity | ImageCapacity | VolumeCapacity) -> str:
    return show_size(one.shared_bytes) if one.shared_bytes else "-"
