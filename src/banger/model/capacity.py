"""What this host has, and what VMs have taken of it: the documents, and the arithmetic behind them."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import msgspec

from banger.model.vm import LIVE, Vm, VmState


class Extent(NamedTuple):
    """Bytes of a filesystem's device that a file shares with another file."""

    start: int
    length: int


class Used(NamedTuple):
    """What the files of one VM, image or volume take, in bytes, holes not counted.

    allocated   on the filesystem that holds the state directory
    elsewhere   on other filesystems
    shared      extents of the first that other files have as well
    """

    allocated: int = 0
    elsewhere: int = 0
    shared: tuple[Extent, ...] = ()


class Filesystem(msgspec.Struct, frozen=True, kw_only=True):
    """A filesystem in bytes. `free` is what we may write; what it keeps for root is neither used nor free."""

    total: int
    used: int
    free: int


class CpuCapacity(msgspec.Struct, frozen=True, kw_only=True):
    """Processors of the host, and vCPUs of the VMs that run; more than 1.0 of them is over-committed."""

    host: int
    reserved: int
    overcommit: float


class MemoryCapacity(msgspec.Struct, frozen=True, kw_only=True):
    """MiB of the host, and of the VMs that run."""

    host_mib: int
    reserved_mib: int
    overcommit: float


class DiskCapacity(msgspec.Struct, frozen=True, kw_only=True):
    """The filesystem that holds the state directory `path`; bytes.

    vms, images, volumes, others, kept and free add up to the total; bytes that several files share are counted once.
    `kept` is what the filesystem keeps for root. `room` is what is free above the reserve. `promised` is the sum of
    the VMs' disks, root and work, as their guests see them, `overcommit` how many times that is what they have and
    could get. `elsewhere` is what all of them have on other filesystems, in none of the other numbers.
    """

    path: str
    total_bytes: int
    vms_bytes: int
    images_bytes: int
    volumes_bytes: int
    others_bytes: int
    kept_bytes: int
    free_bytes: int
    reserve_bytes: int
    room_bytes: int
    promised_bytes: int
    overcommit: float
    elsewhere_bytes: int


class VmCapacity(msgspec.Struct, frozen=True, kw_only=True):
    """One VM. `disk_bytes` and `work_disk_bytes` are the sizes that its guest sees. `allocated_bytes` is what its disks
    take; `shared_bytes` is the part of it that is counted for its image, or for another VM, already: deleting the VM
    frees the rest. `reserves`: its vCPUs and memory are taken now.
    """

    id: str
    name: str
    state: VmState
    vcpu: int
    memory_mib: int
    disk_bytes: int
    work_disk_bytes: int
    allocated_bytes: int
    shared_bytes: int
    reserves: bool


class ImageCapacity(msgspec.Struct, frozen=True, kw_only=True):
    """One image, likewise; shared with an image that comes before it."""

    name: str
    allocated_bytes: int
    shared_bytes: int


class VolumeCapacity(msgspec.Struct, frozen=True, kw_only=True):
    """One volume, likewise; shared with an image, a VM, or a volume that comes before it."""

    name: str
    allocated_bytes: int
    shared_bytes: int


class TotalCapacity(msgspec.Struct, frozen=True, kw_only=True):
    """All VMs together, whether they run or not; how many run; `own_bytes` is without what is shared."""

    vms: int
    running: int
    vcpu: int
    memory_mib: int
    allocated_bytes: int
    own_bytes: int


class Capacity(msgspec.Struct, frozen=True, kw_only=True):
    """The answer of `GET /capacity`; VMs, images and volumes by name."""

    cpu: CpuCapacity
    memory: MemoryCapacity
    disk: DiskCapacity
    total: TotalCapacity
    vms: tuple[VmCapacity, ...]
    images: tuple[ImageCapacity, ...]
    volumes: tuple[VolumeCapacity, ...]


class Host(NamedTuple):
    """The host, as seen at one moment."""

    cpus: int
    memory_mib: int
    filesystem: Filesystem


class Taken(NamedTuple):
    """What was measured, in the order in which shared bytes are counted; `volumes` by name, as `images`."""

    images: Sequence[tuple[str, Used]] = ()
    vms: Sequence[tuple[Vm, Used]] = ()
    volumes: Sequence[tuple[str, Used]] = ()


_Rows = tuple[Sequence[VmCapacity], Sequence[ImageCapacity], Sequence[VolumeCapacity]]


def reserves(vm: Vm) -> bool:
    """Whether a VM's vCPUs and memory are taken: it runs, is paused (its memory stays), or is about to run."""
    return vm.process is not None or vm.state in LIVE or vm.state is VmState.CREATING


def shared_before(files: Iterable[Sequence[Extent]]) -> list[int]:
    """For each file, how many bytes of its extents a file before it, or itself, has already."""
    known: set[Extent] = set()
    covered = Ranges()
    found = []
    for extents in files:
        again = 0
        for extent in extents:
            if extent in known:  # what a fresh clone has
                again += extent.length
            else:
                known.add(extent)
                again += covered.add(extent.start, extent.start + extent.length)
        found.append(again)
    return found


class Ranges:
    """Ranges of bytes, in order; those that touch are one."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []

    def add(self, start: int, end: int) -> int:
        """Cover a range; how many bytes of it were covered."""
        first, behind = bisect_left(self._ends, start), bisect_right(self._starts, end)
        touched = zip(self._starts[first:behind], self._ends[first:behind], strict=True)
        before = sum(max(0, min(end, its_end) - max(start, its_start)) for its_start, its_end in touched)
        if first < behind:
            start, end = min(start, self._starts[first]), max(end, self._ends[behind - 1])
        self._starts[first:behind], self._ends[first:behind] = [start], [end]
        return before


def ratio(part: int, whole: int) -> float:
    """To two digits; 0 where there is no whole."""
    return round(part / whole, 2) if whole > 0 else 0.0


def summarize(path: str, host: Host, reserve: int, taken: Taken) -> Capacity:
    """All of it from what was measured. Images come first: what a VM shares with one is the image's."""
    images, vms, volumes = taken
    uses = [used for _, used in (*images, *vms, *volumes)]
    # a file that was written meanwhile may share more than it was seen to have
    again = iter(
        [min(shared, used.allocated) for shared, used in zip(shared_before(u.shared for u in uses), uses, strict=True)]
    )
    image_rows = tuple(
        ImageCapacity(name=name, allocated_bytes=used.allocated, shared_bytes=next(again)) for name, used in images
    )
    vm_rows = tuple(_row(vm, used, next(again)) for vm, used in vms)
    volume_rows = tuple(
        VolumeCapacity(name=name, allocated_bytes=used.allocated, shared_bytes=next(again)) for name, used in volumes
    )
    running = [row for row in vm_rows if row.reserves]
    vcpu, memory = sum(row.vcpu for row in running), sum(row.memory_mib for row in running)
    rows, elsewhere = (vm_rows, image_rows, volume_rows), sum(used.elsewhere for used in uses)
    return Capacity(
        cpu=CpuCapacity(host=host.cpus, reserved=vcpu, overcommit=ratio(vcpu, host.cpus)),
        memory=MemoryCapacity(host_mib=host.memory_mib, reserved_mib=memory, overcommit=ratio(memory, host.memory_mib)),
        disk=_disk(path, host.filesystem, reserve, rows, elsewhere),
        total=_total(vm_rows, len(running)),
        vms=vm_rows,
        images=image_rows,
        volumes=volume_rows,
    )


def _row(vm: Vm, used: Used, shared: int) -> VmCapacity:
    return VmCapacity(
        id=vm.id,
        name=vm.name,
        state=vm.state,
        vcpu=vm.vcpu,
        memory_mib=vm.memory_mib,
        disk_bytes=vm.disk_bytes,
        work_disk_bytes=vm.work_disk_bytes,
        allocated_bytes=used.allocated,
        shared_bytes=shared,
        reserves=reserves(vm),
    )


def _total(vms: Sequence[VmCapacity], running: int) -> TotalCapacity:
    return TotalCapacity(
        vms=len(vms),
        running=running,
        vcpu=sum(vm.vcpu for vm in vms),
        memory_mib=sum(vm.memory_mib for vm in vms),
        allocated_bytes=sum(vm.allocated_bytes for vm in vms),
        own_bytes=_own(vms),
    )


def _own(rows: Sequence[VmCapacity | ImageCapacity | VolumeCapacity]) -> int:
    return sum(row.allocated_bytes - row.shared_bytes for row in rows)


def _disk(path: str, filesystem: Filesystem, reserve: int, rows: _Rows, elsewhere: int) -> DiskCapacity:
    vms, images, volumes = rows
    of_vms, of_images, of_volumes = _own(vms), _own(images), _own(volumes)
    promised = sum(vm.disk_bytes + vm.work_disk_bytes for vm in vms)
    return DiskCapacity(
        path=path,
        total_bytes=filesystem.total,
        vms_bytes=of_vms,
        images_bytes=of_images,
        volumes_bytes=of_volumes,
        # blocks that are promised and not written yet may be in a file and not in the filesystem's count
        others_bytes=max(0, filesystem.used - of_vms - of_images - of_volumes),
        kept_bytes=max(0, filesystem.total - filesystem.used - filesystem.free),
        free_bytes=filesystem.free,
        reserve_bytes=reserve,
        room_bytes=max(0, filesystem.free - reserve),
        promised_bytes=promised,
        overcommit=ratio(promised, of_vms + filesystem.free),
        elsewhere_bytes=elsewhere,
    )
