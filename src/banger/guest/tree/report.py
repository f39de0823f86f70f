"""What a copy tells: how far it is, what it left out, and why it ended early."""

from collections.abc import Callable

SKIPPED_MAX = 20  # lines kept of what was left out

Progress = Callable[[int, int], None]  # entries and bytes so far


class TreeError(Exception):
    """A copy that cannot go on: one line that names the path, and the errno when the system gave one, else 0."""

    def __init__(self, text: str, errno: int = 0) -> None:
        super().__init__(text)
        self.text = text
        self.errno = errno


class Report:
    """Counts of one copy. `bytes` are those of files' data, holes not counted."""

    __slots__ = ("_progress", "_skipped", "_unnamed", "bytes", "entries")

    def __init__(self, progress: "Progress | None" = None) -> None:
        self.entries = 0
        self.bytes = 0
        self._skipped: list[str] = []
        self._unnamed = 0
        self._progress = progress

    def count(self, *, entries: int = 0, size: int = 0) -> None:
        """Add to the counts and tell the listener."""
        self.entries += entries
        self.bytes += size
        if self._progress is not None:
            self._progress(self.entries, self.bytes)

    def skip(self, path: bytes, why: str) -> None:
        """Note something that was not copied, or not as it was."""
        if len(self._skipped) < SKIPPED_MAX - 1:
            self._skipped.append(f"{shown(path)}: {why}")
        else:
            self._unnamed += 1

    def document(self) -> "dict[str, object]":
        """{"entries", "bytes", "skipped"}: at most `SKIPPED_MAX` lines."""
        return {"entries": self.entries, "bytes": self.bytes, "skipped": self.skipped_lines()}

    def skipped_lines(self) -> "list[str]":
        """What was left out, each with its reason; the last line counts those that have none of their own."""
        return self._skipped + ([f"and {self._unnamed} more"] if self._unnamed else [])


def shown(path: bytes) -> str:
    """A path for a message: bounded, and never more than one line."""
    text = path.decode("utf-8", "replace")
    if len(text) > 300:
        text = text[:100] + "..." + text[-197:]
    return "".join(character if character.isprintable() else "?" for character in text)
