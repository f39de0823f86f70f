"""What QEMU says is heard to its end and bounded, whatever a guest makes it say."""

import asyncio
import logging
from pathlib import Path

import pytest

from banger.qemu import vmm
from banger.qemu.vmm import LINE_MAX, LOGGED_LINES, Options, Vmm


def heard(data: bytes, caplog: pytest.LogCaptureFixture) -> list[str]:
    async def main() -> None:
        stream = asyncio.StreamReader(limit=1 << 24)
        stream.feed_data(data)
        stream.feed_eof()
        machine = Vmm(Options("a", Path("/nowhere")))
        await machine._read_words(stream, {"/proc/self/fd/9": "/images/vmlinux"})

    with caplog.at_level(logging.WARNING, logger=vmm.log.name):
        asyncio.run(main())
    return [record.getMessage() for record in caplog.records]


def test_descriptors_have_the_names_that_people_gave(caplog: pytest.LogCaptureFixture) -> None:
    said = heard(b"cannot load '/proc/self/fd/9'\nand more", caplog)
    assert said == ["qemu: cannot load '/images/vmlinux'", "qemu: and more"]


def test_a_line_without_an_end_is_cut(caplog: pytest.LogCaptureFixture) -> None:
    said = heard(b"x" * 1_000_000 + b"\nlast\n", caplog)
    assert said[-1] == "qemu: last"
    assert all(len(line) <= LINE_MAX + 10 for line in said)


def test_a_flood_is_counted_and_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    said = heard(b"again\n" * 100_000, caplog)
    assert len(said) == LOGGED_LINES + 1
    assert said[-1] == f"qemu: {100_000 - LOGGED_LINES} more lines were not logged"
