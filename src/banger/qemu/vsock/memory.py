"""Guest RAM as the front end describes it in SET_MEM_TABLE (vhost-user specification, "Memory region description").

Only `GuestMemory` and `banger.qemu.vsock.ring.Ring` touch guest memory. Machines whose RAM is
copy-on-write (`share=off`) can not be mapped; a variant over `/proc/<pid>/mem` would replace these two
classes, keeping `peek`, `commit`, `flush` and `arm`, and nothing else.
"""

import mmap
from collections.abc import Iterable
from typing import NamedTuple


class BadRing(Exception):
    """The guest broke the rules of a virtqueue. The device stops until its driver starts again."""


class Region(NamedTuple):
    """One entry of the memory table: where the guest and QEMU see it, bytes, and where it lies in its file."""

    guest_address: int
    size: int
    host_address: int
    offset: int


class _Mapped(NamedTuple):
    start: int
    end: int
    host_address: int
    view: memoryview
    whole: mmap.mmap


class GuestMemory:
    """Shared mappings of all regions. Dropping the last reference unmaps them."""

    def __init__(self, regions: Iterable[tuple[Region, int]]) -> None:
        """Map each (region, file descriptor); the descriptors stay the caller's.

        Raises `ValueError` or `OSError` for a region that its file does not hold.
        """
        mapped = []
        for region, fd in regions:
            whole = mmap.mmap(fd, region.offset + region.size, mmap.MAP_SHARED)
            view = memoryview(whole)[region.offset : region.offset + region.size]
            start = region.guest_address
            mapped.append(_Mapped(start, start + region.size, region.host_address, view, whole))
        # Largest first: nearly every address lies there.
        self._regions = sorted(mapped, key=lambda entry: entry.start - entry.end)

    def guest(self, address: int, size: int) -> memoryview:
        """The bytes at a guest-physical address, writable in place. Raises `BadRing` outside of RAM."""
        for start, end, _, view, _ in self._regions:
            if start <= address and address + size <= end:
                return view[address - start : address - start + size]
        raise BadRing(f"no guest memory at {address:#x}+{size}")

    def host(self, address: int, size: int) -> memoryview:
        """The bytes at an address of QEMU's: vrings are given so. Raises `BadRing` outside of RAM."""
        for start, end, host, view, _ in self._regions:
            if host <= address and address + size <= host + end - start:
                return view[address - host : address - host + size]
        raise BadRing(f"no guest memory at QEMU address {address:#x}+{size}")

    def forget_pages(self) -> None:
        """Drop our page table entries, so that pages touched once do not count as ours for ever (madvise(2)).

        The mappings are shared: their content stays, and the next access finds it again.
        """
        for region in self._regions:
            region.whole.madvise(mmap.MADV_DONTNEED)
