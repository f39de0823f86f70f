"""What is told to QEMU about drives of a running machine."""

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest

from banger.model.errors import Invalid
from banger.model.firecracker import Drive
from banger.qemu.disks import open_layers
from banger.qemu.live import Live
from banger.qemu.qmp import Qmp

MIB = 1 << 20


class Monitor(Qmp):
    """Notes what it is told."""

    def __init__(self) -> None:
        super().__init__("a")
        self.told: list[tuple[str, dict[str, Any]]] = []

    async def execute(self, name: str, **arguments: object) -> Any:
        self.told.append((name, arguments))


def work(path: Path, *, read_only: bool = False) -> Drive:
    return Drive(drive_id="work", path_on_host=str(path), is_root_device=False, is_read_only=read_only)


def regrown(path: Path, size: int, *, read_only: bool = False) -> Monitor:
    """What QEMU is told when the same raw file is given again after it has become larger."""
    drive, monitor = work(path, read_only=read_only), Monitor()
    path.write_bytes(b"QFI\xfb" + bytes(MIB - 4))  # what a guest may write is no reason to take it for qcow2

    async def main() -> None:
        live = Live(monitor)
        layers = open_layers(str(path), read_only=read_only, backing_files=())
        await live.begin([drive], {"work": layers}, None)
        assert monitor.drive_of("disk0") == "work"
        assert monitor.drive_of("disk7") == "disk7"
        os.truncate(path, size)
        try:
            await live.reopen(drive, open_layers(str(path), read_only=read_only, backing_files=()))
        finally:
            live.close()

    before = set(Path("/proc/self/fd").iterdir())
    try:
        asyncio.run(main())
    finally:
        assert set(Path("/proc/self/fd").iterdir()) <= before, "a descriptor was left open"
    return monitor


def test_the_same_file_after_it_has_grown_is_only_a_new_size(tmp_path: Path) -> None:
    told = regrown(tmp_path / "work.ext4", 3 * MIB).told
    assert told == [("block_resize", {"node_name": "disk0", "size": 3 * MIB})]


def test_a_read_only_drive_keeps_its_size(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="read-only"):
        regrown(tmp_path / "work.ext4", 3 * MIB, read_only=True)
