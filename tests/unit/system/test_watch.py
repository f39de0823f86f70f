"""What the kernel tells of files that grow."""

import asyncio
import contextlib
from pathlib import Path

import pytest

from banger.system.watch import Growth


def inotify_instances() -> int:
    found = 0
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found += str(link.readlink()) == "anon_inode:inotify"
    return found


def append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"x")


def test_each_file_is_told_apart_with_one_instance_for_all(tmp_path: Path) -> None:
    paths = [tmp_path / str(number) for number in range(50)]
    for path in paths:
        path.touch()

    async def main() -> None:
        growth = Growth()
        instances = inotify_instances()
        with growth.of(paths[0]) as first, growth.of(paths[1]) as second:
            append(paths[1])
            async with asyncio.timeout(10):
                await second.wait()
            assert not first.is_set()
            second.clear()
            for path in paths[2:]:
                with growth.of(path) as written:
                    append(path)
                    async with asyncio.timeout(10):
                        await written.wait()
            assert inotify_instances() == instances
        append(paths[0])
        with growth.of(paths[0]) as again:
            append(paths[0])
            async with asyncio.timeout(10):
                await again.wait()
            assert not first.is_set()
        growth.close()

    asyncio.run(main())


def test_a_file_that_is_not_there_cannot_be_watched(tmp_path: Path) -> None:
    async def main() -> None:
        growth = Growth()
        with pytest.raises(FileNotFoundError), growth.of(tmp_path / "nowhere"):
            pass
        growth.close()

    asyncio.run(main())
