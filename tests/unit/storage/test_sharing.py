"""What files share is remembered and still right: held against a model of a filesystem that shares blocks."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from banger.model.capacity import Extent, shared_before
from banger.storage.sharing import Extents, SharedOf, Sharing

BLOCK = 4096
PLACE = Path("/")
MINUTE = 60.0


class Files:
    """A filesystem: each file is a list of places of blocks, by inode. Each change takes its time.

    `hidden` are blocks that were written and have no place of their own yet, as until the kernel writes them out.
    """

    def __init__(self) -> None:
        self.now = 1e9
        self.files: dict[int, list[int]] = {}
        self.changed: dict[int, float] = {}
        self.hidden: dict[int, dict[int, int]] = {}
        self.places = 0
        self.inodes = 0
        self.reads = 0

    def _new(self, blocks: list[int]) -> int:
        self.inodes += 1
        self.files[self.inodes] = blocks
        self._touch(self.inodes)
        return self.inodes

    def _touch(self, inode: int) -> None:
        self.now += 0.01
        self.changed[inode] = self.now

    def make(self, count: int) -> int:
        self.places += count + 1
        return self._new([self.places - number for number in range(count)])

    def clone(self, inode: int) -> int:
        return self._new(list(self.files[inode]))

    def write(self, inode: int, at: int) -> None:
        """Later: the block is where it was until `flush`."""
        self.places += 2
        self.hidden.setdefault(inode, {})[at % len(self.files[inode])] = self.places
        self._touch(inode)

    def flush(self) -> None:
        for inode, blocks in self.hidden.items():
            for at, place in blocks.items():
                if inode in self.files:
                    self.files[inode][at] = place
        self.hidden = {}

    def delete(self, inode: int) -> None:
        del self.files[inode]

    def read(self, path: str) -> Extents:
        self.reads += 1
        inode = int(path)
        others = {place for other, blocks in self.files.items() if other != inode for place in blocks}
        return tuple(Extent(place * BLOCK, BLOCK) for place in self.files[inode] if place in others)

    def stat(self, inode: int) -> os.stat_result:
        changed = self.changed[inode]
        blocks = len(self.files[inode]) * BLOCK // 512
        times = (0, 0, 0, 0.0, 0.0, changed, 0, 0, int(changed * 1e9), BLOCK, blocks)
        return os.stat_result((0o100600, inode, 1, 1, 0, 0, 0, *times))

    def shared(self) -> list[int]:
        """Counted block by block: what files before, by inode, have already."""
        known: set[int] = set()
        found = []
        for _, blocks in sorted(self.files.items()):
            found.append(BLOCK * len(known & set(blocks)))
            known |= set(blocks)
        return found


@pytest.fixture
def files() -> Files:
    return Files()


def sharing_of(files: Files) -> Sharing:
    return Sharing(lambda _: True, files.read, lambda: files.now)


def look(sharing: Sharing, files: Files) -> list[int]:
    def measure(shared_of: SharedOf) -> list[Extents]:
        return [shared_of(str(inode), files.stat(inode)) for inode in sorted(files.files)]

    return shared_before(sharing.look(PLACE, measure))


def reads(files: Files, work: Callable[[], object]) -> int:
    before = files.reads
    work()
    return files.reads - before


def test_a_file_that_does_not_change_is_read_once(files: Files) -> None:
    sharing, image = sharing_of(files), files.make(5)
    for _ in range(3):
        files.clone(image)
    files.now += 2 * MINUTE
    assert look(sharing, files) == [0, 20480, 20480, 20480]
    assert reads(files, lambda: look(sharing, files)) == 0
    assert look(sharing, files) == [0, 20480, 20480, 20480]


def test_a_file_that_changed_is_read_alone(files: Files) -> None:
    sharing, image = sharing_of(files), files.make(5)
    clones = [files.clone(image) for _ in range(3)]
    files.now += 2 * MINUTE
    look(sharing, files)
    files.write(clones[1], 2)
    files.flush()
    assert reads(files, lambda: look(sharing, files)) == 1
    assert look(sharing, files) == files.shared() == [0, 20480, 16384, 20480]


def test_the_first_clone_of_an_unchanged_file_has_it_read_again(files: Files) -> None:
    sharing, image, other = sharing_of(files), files.make(5), files.make(3)
    files.now += 2 * MINUTE
    assert look(sharing, files) == [0, 0]
    files.clone(image)
    assert look(sharing, files) == [0, 0, 20480]
    # and the second does not
    files.clone(image)
    assert reads(files, lambda: look(sharing, files)) == 2
    assert look(sharing, files) == files.shared()
    files.delete(other)
    files.delete(image)
    assert look(sharing, files) == files.shared() == [0, 20480]


def test_what_has_just_changed_is_read_until_it_is_written_out(files: Files) -> None:
    sharing, image = sharing_of(files), files.make(5)
    clone = files.clone(image)
    files.write(clone, 0)
    assert look(sharing, files) == [0, 20480]
    files.now += MINUTE / 2
    files.flush()
    assert look(sharing, files) == [0, 16384]


def test_what_moves_without_a_trace_is_seen_after_a_while(files: Files) -> None:
    sharing, image = sharing_of(files), files.make(5)
    clone = files.clone(image)
    files.now += 2 * MINUTE
    assert look(sharing, files) == [0, 20480]
    files.files[clone] = [files.places + 2 + at for at in range(5)]
    files.now += 11 * MINUTE
    assert look(sharing, files) == [0, 0]


def test_a_clock_that_was_set_back_is_no_reason_to_trust_what_is_remembered(files: Files) -> None:
    sharing = sharing_of(files)
    files.make(5)
    files.now += 2 * MINUTE
    look(sharing, files)
    files.now -= MINUTE
    assert reads(files, lambda: look(sharing, files)) == 1


@pytest.mark.parametrize(
    ("answers", "tries", "asked"),
    [([False], 1, 0), ([True], 1, 2), ([OSError(errno.ENOSPC, "full"), False], 2, 1)],
)
def test_files_are_asked_unless_their_filesystem_is_known_to_share_nothing(
    files: Files, answers: list[bool | OSError], tries: int, asked: int
) -> None:
    tried = 0

    def can_share(_: Path) -> bool:
        nonlocal tried
        answer = answers[tried]
        tried += 1
        if isinstance(answer, OSError):
            raise answer
        return answer

    sharing = Sharing(can_share, files.read, lambda: files.now)
    files.make(5)
    for _ in range(2):
        look(sharing, files)
    assert (tried, files.reads) == (tries, asked)


KINDS = ("make", "clone", "clone", "write", "write", "delete", "flush")
STEP = st.tuples(st.sampled_from(KINDS), st.integers(0, 5), st.integers(0, 9), st.sampled_from((0, 0, 20, 90, 400)))


@given(st.lists(st.tuples(STEP, st.booleans()), max_size=25))
def test_it_is_always_as_if_every_file_were_read(steps: list[tuple[tuple[str, int, int, int], bool]]) -> None:
    files = Files()
    sharing = sharing_of(files)
    files.make(4)
    for (kind, which, at, pause), looked_at in steps:
        if pause:  # what was written has been written out then
            files.now += pause
            files.flush()
        if looked_at:
            assert look(sharing, files) == files.shared()
        inodes = sorted(files.files)
        if kind == "make" or not inodes:
            files.make(1 + at)
        elif kind == "clone":  # the kernel writes out what is cloned first
            files.flush()
            files.clone(inodes[which % len(inodes)])
        elif kind == "write":
            files.write(inodes[which % len(inodes)], at)
        elif kind == "delete":
            files.delete(inodes[which % len(inodes)])
        elif kind == "flush":
            files.flush()
    assert look(sharing, files) == files.shared()
