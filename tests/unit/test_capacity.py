"""The arithmetic of capacity: what is shared is counted once, and the numbers of a disk add up."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from banger.model.capacity import Extent, Filesystem, Host, Taken, Used, shared_before, summarize
from banger.model.vm import VmState
from tests.unit.test_store import make_vm

MIB = 1 << 20
FILESYSTEM = Filesystem(total=1000 * MIB, used=600 * MIB, free=350 * MIB)
HOST = Host(cpus=2, memory_mib=2048, filesystem=FILESYSTEM)


@pytest.mark.parametrize(
    ("files", "again"),
    [
        ([], []),
        ([[], []], [0, 0]),
        ([[Extent(0, 10)], [Extent(0, 10)]], [0, 10]),
        ([[Extent(0, 10)], [Extent(10, 10)]], [0, 0]),
        ([[Extent(0, 10)], [Extent(5, 10)]], [0, 5]),
        ([[Extent(0, 10), Extent(20, 10)], [Extent(5, 20)], [Extent(0, 30)]], [0, 10, 30]),
        ([[Extent(20, 10), Extent(0, 10)], [Extent(9, 12)]], [0, 2]),
        # blocks that one file has twice, as after deduplication
        ([[Extent(0, 10), Extent(0, 10), Extent(5, 10)]], [15]),
        # three clones, the image gone: the first has them
        ([[Extent(0, 10)], [Extent(0, 10)], [Extent(0, 10)]], [0, 10, 10]),
    ],
)
def test_bytes_that_a_file_before_has(files: list[list[Extent]], again: list[int]) -> None:
    assert shared_before(files) == again


@given(st.lists(st.lists(st.builds(Extent, st.integers(0, 60), st.integers(1, 25)), max_size=6), max_size=6))
def test_the_same_as_counting_byte_by_byte(files: list[list[Extent]]) -> None:
    seen: set[int] = set()
    expected = []
    for extents in files:
        again = 0
        for start, length in extents:
            again += len(seen & set(range(start, start + length)))
            seen |= set(range(start, start + length))
        expected.append(again)
    assert shared_before(files) == expected


def test_what_vms_share_with_their_image_is_the_images() -> None:
    blocks = (Extent(0, 60 * MIB), Extent(100 * MIB, 40 * MIB))
    image = ("debian", Used(100 * MIB, 0, blocks))
    clones = [
        (make_vm("a", "a"), Used(100 * MIB, 0, blocks)),
        # it has written 10 MiB in the first extent since
        (make_vm("b", "b"), Used(100 * MIB, 0, (Extent(0, 50 * MIB), Extent(100 * MIB, 40 * MIB)))),
    ]
    found = summarize("/s", HOST, 0, Taken([image], clones))
    assert [vm.shared_bytes for vm in found.vms] == [100 * MIB, 90 * MIB]
    assert (found.disk.images_bytes, found.disk.vms_bytes) == (100 * MIB, 10 * MIB)
    assert (found.total.allocated_bytes, found.total.own_bytes) == (200 * MIB, 10 * MIB)


def test_a_volume_comes_after_the_image_and_the_vms() -> None:
    blocks = (Extent(0, 60 * MIB), Extent(100 * MIB, 40 * MIB))
    vm = (make_vm("a", "a"), Used(50 * MIB, 0, blocks[1:]))
    found = summarize(
        "/s", HOST, 0, Taken([("i", Used(60 * MIB, 0, blocks[:1]))], [vm], [("v", Used(100 * MIB, 0, blocks))])
    )
    assert [(row.name, row.allocated_bytes, row.shared_bytes) for row in found.volumes] == [("v", 100 * MIB, 100 * MIB)]
    assert (found.disk.images_bytes, found.disk.vms_bytes, found.disk.volumes_bytes) == (60 * MIB, 50 * MIB, 0)


def test_the_parts_of_the_disk_add_up_to_its_total() -> None:
    vms = [(make_vm("a", "a"), Used(30 * MIB)), (make_vm("b", "b"), Used(20 * MIB, 7 * MIB))]
    taken = Taken([("debian", Used(200 * MIB))], vms, [("work", Used(30 * MIB)), ("old", Used(10 * MIB))])
    disk = summarize("/s", HOST, 100 * MIB, taken).disk
    parts = (disk.vms_bytes, disk.images_bytes, disk.volumes_bytes, disk.others_bytes, disk.kept_bytes)
    assert parts == (50 * MIB, 200 * MIB, 40 * MIB, 310 * MIB, 50 * MIB)
    assert sum(parts) + disk.free_bytes == 1000 * MIB
    assert (disk.room_bytes, disk.reserve_bytes, disk.elsewhere_bytes) == (250 * MIB, 100 * MIB, 7 * MIB)


def test_less_than_the_reserve_is_no_room_at_all() -> None:
    assert summarize("/s", HOST, 351 * MIB, Taken()).disk.room_bytes == 0


@pytest.mark.parametrize(
    ("state", "process", "taken"),
    [
        (VmState.RUNNING, True, True),
        (VmState.PAUSED, True, True),
        (VmState.CREATING, False, True),
        (VmState.STOPPED, True, True),  # a start that is under way
        (VmState.DELETING, True, True),
        (VmState.STOPPED, False, False),
        (VmState.FAILED, False, False),
        (VmState.DELETING, False, False),
    ],
)
def test_a_vm_reserves_from_the_begin_of_its_start_to_the_end_of_its_engine(
    state: VmState, process: bool, taken: bool
) -> None:
    vm = make_vm("a", "a")
    vm = msgspec.structs.replace(vm, state=state, process=vm.process if process else None)
    found = summarize("/s", HOST, 0, Taken(vms=[(vm, Used())]))
    assert (found.cpu.reserved, found.memory.reserved_mib) == ((2, 512) if taken else (0, 0))
    assert (found.total.running, found.total.vcpu, found.total.memory_mib) == (int(taken), 2, 512)


def test_more_than_the_host_has_is_over_committed() -> None:
    vms = [(make_vm(name, name), Used()) for name in "abc"]
    found = summarize("/s", HOST, 0, Taken(vms=vms))
    assert (found.cpu.reserved, found.cpu.overcommit) == (6, 3.0)
    assert (found.memory.reserved_mib, found.memory.overcommit) == (1536, 0.75)


def test_disks_promise_what_they_have_and_what_is_free_is_all_they_can_get() -> None:
    vm = msgspec.structs.replace(make_vm("a", "a"), disk_bytes=500 * MIB, work_disk_bytes=300 * MIB)
    found = summarize("/s", HOST, 0, Taken(vms=[(vm, Used(50 * MIB))]))
    assert (found.vms[0].disk_bytes, found.vms[0].work_disk_bytes) == (500 * MIB, 300 * MIB)
    assert (found.disk.promised_bytes, found.disk.overcommit) == (800 * MIB, 2.0)


def test_extents_of_more_than_a_file_has_make_nothing_negative() -> None:
    """Files change between two looks."""
    used = Used(1 * MIB, 0, (Extent(0, 5 * MIB),))
    image = ("i", Used(900 * MIB, 0, (Extent(0, 5 * MIB),)))
    found = summarize("/s", HOST, 0, Taken([image], [(make_vm("a", "a"), used)]))
    assert found.vms[0].shared_bytes == 1 * MIB
    assert (found.disk.vms_bytes, found.disk.others_bytes) == (0, 0)
