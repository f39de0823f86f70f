"""Changing an ext4 filesystem in a file without mounting it: debugfs, told all at once.

debugfs goes on after an error and ends well, so what it says counts. It leaves the counts of links to e2fsck.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from banger.system.e2fsprogs import readable_by_all, run_tool

# The words of one command. `bytes` are the content of a file that it reads, such as `write`'s.
Command = Sequence[str | bytes]
_TIMEOUT_S = 600.0


def own(target: str, mode: int) -> list[Command]:
    """Commands that make root the owner of a file, and give it these permissions and this type."""
    return [("sif", target, "mode", f"0{mode:o}"), ("sif", target, "uid", "0"), ("sif", target, "gid", "0")]


def write(directory: str, name: str, content: bytes, mode: int) -> list[Command]:
    """Commands that make a file which does not exist yet."""
    return [("cd", directory), ("write", content, name), *own(name, 0o100000 | mode), ("cd", "/")]


async def edit(disk: Path, commands: Sequence[Command]) -> None:
    """Carry the commands out, each on what the one before has left. Raises `CommandFailed` when one of them fails."""
    with ExitStack() as stack:
        fds: list[int] = []
        lines = []
        for command in commands:
            words = []
            for word in command:
                if isinstance(word, bytes):
                    fds.append(stack.enter_context(readable_by_all(word)))
                    word = f"/proc/self/fd/{fds[-1]}"
                words.append(_quoted(word))
            lines.append(" ".join(words) + "\n")
        script = "".join(lines).encode()
        done = await run_tool(["debugfs", "-w", "-f", script, disk], timeout=_TIMEOUT_S, writes=True, inherited=fds)
    errors = [line for line in done.errors if not line.startswith("debugfs 1.")]
    if done.status or errors:
        raise done._replace(errors=tuple(errors)).failure()


def _quoted(word: str) -> str:
    """As debugfs reads words (e2fsprogs, lib/ss/parse.c): a quote within quotes is written twice."""
    assert word.isprintable()
    return '"' + word.replace('"', '""') + '"' if set(word) & set(' \t"') or not word else word
