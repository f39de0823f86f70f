"""What can be wrong with a work disk."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import NamedTuple

from banger.system.debugfs import Command
from banger.system.ext4 import Superblock

_NAME_MAX = 255


class Repair(NamedTuple):
    """Something wrong in root's home: what is found, what is said once it is put right, and how debugfs does that."""

    found: str
    done: str
    commands: tuple[Command, ...]


@dataclass(frozen=True)
class Findings:
    """What is wrong with a work disk.

    `journal`: its machine did not shut down, and what is in the journal is still to be written back. `check`: why
    e2fsck must go through the whole filesystem; the home is not looked into before that. `nested` is the inode of a
    home that was copied one level too deep; it and `repairs` concern root's home. What is `left` is odd and left as it
    is.
    """

    superblock: Superblock
    check: str = ""
    nested: int | None = None
    repairs: tuple[Repair, ...] = ()
    left: tuple[str, ...] = ()

    @property
    def journal(self) -> bool:
        return self.superblock.needs_recovery

    @property
    def home_is_fine(self) -> bool:
        return self.nested is None and not self.repairs

    @property
    def lines(self) -> tuple[str, ...]:
        """All of it, for a person; empty when nothing is wrong."""
        lines = ["the machine did not shut down: the next start replays the journal"] if self.journal else []
        lines += [self.check] if self.check else []
        lines += ["root's home was copied one level too deep: it lies in /root/root"] if self.nested else []
        return (*lines, *(repair.found for repair in self.repairs), *self.left)


def dated(name: bytes, mark: str, today: str, taken: Collection[bytes]) -> bytes:
    """The name under which something is kept: `NAME.MARK-DATE`, with `-2` and so on where that is taken. Pure."""
    number = 1
    while True:
        ending = f".{mark}-{today}{f'-{number}' if number > 1 else ''}".encode()
        kept = name[: _NAME_MAX - len(ending)]
        if kept != name:
            kept = kept.decode(errors="ignore").encode() if _is_text(name) else kept
        if kept + ending not in taken:
            return kept + ending
        number += 1


def _is_text(name: bytes) -> bool:
    try:
        name.decode()
    except UnicodeDecodeError:
        return False
    return True
