"""A device mapper that only keeps books: it reads requests as the kernel does, and devices hold what they name."""

import errno
import os
import struct
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from banger.system import devmapper

HEAD = struct.Struct("=3I I I I i I I I Q 128s 129s 7s")
TARGET = struct.Struct("=QQ i I 16s")
VERSION, CREATE, REMOVE, SUSPEND, STATUS, LOAD = 0, 3, 4, 6, 7, 9
READ_ONLY, WHEN_CLOSED = 1, 1 << 17


@dataclass
class Device:
    minor: int
    table: list[tuple[int, int, str, str]] = field(default_factory=list)
    read_only: bool = False
    live: bool = False
    holds: list[int] = field(default_factory=list)
    open: int = 0
    going: bool = False


class Mapper:
    """`refuses` names a kind of target that it does not have; `told` is every request's number and device."""

    def __init__(self, nodes: Path) -> None:
        self.devices: dict[str, Device] = {}
        self.told: list[tuple[int, str]] = []
        self.refuses = ""
        self._nodes = nodes

    def ioctl(self, _: int, request: int, buffer: bytearray) -> int:
        assert request & ~0xFF == 0xC138FD00
        head = HEAD.unpack_from(buffer)
        assert head[:3] <= (4, 27, 0)
        assert (head[3], head[4]) == (len(buffer), HEAD.size)
        name, flags, command = head[11].rstrip(b"\0").decode(), head[7], request & 0xFF
        self.told.append((command, name))
        assert head[8] >> 16 == 0x6F, "udev would look into the device"
        if command == VERSION:
            return 0
        if command == CREATE:
            if name in self.devices:
                raise OSError(errno.EBUSY, "busy")
            taken = {device.minor for device in self.devices.values()}
            self.devices[name] = Device(min(set(range(300)) - taken))
        device = self.devices.get(name)
        if device is None:
            raise OSError(errno.ENXIO, "No such device or address")
        if command == LOAD:
            self._load(device, buffer, head[5], read_only=bool(flags & READ_ONLY))
        elif command == SUSPEND:
            assert not flags & 2
            device.live = True
            (self._nodes / f"dm-{device.minor}").touch()
        elif command == REMOVE:
            self._remove(name, later=bool(flags & WHEN_CLOSED))
        struct.pack_into("=Q", buffer, 40, (device.minor & 0xFF) | 253 << 8 | (device.minor & ~0xFF) << 12)
        return 0

    def _load(self, device: Device, buffer: bytearray, count: int, *, read_only: bool) -> None:
        at, device.read_only = HEAD.size, read_only
        for _ in range(count):
            first, sectors, _, distance, kind = TARGET.unpack_from(buffer, at)
            words = bytes(buffer[at + TARGET.size : at + distance]).partition(b"\0")[0].decode()
            device.table.append((first, sectors, kind.rstrip(b"\0").decode(), words))
            assert distance % 8 == 0
            at += distance
        assert at == len(buffer)
        for _, _, kind, words in device.table:
            if kind == self.refuses:
                raise OSError(errno.EINVAL, "Invalid argument")
            for word in words.split():
                major, _, minor = word.partition(":")
                if major == "7":
                    device.holds.append(os.open(f"/dev/loop{minor}", os.O_RDONLY))

    def _remove(self, name: str, *, later: bool) -> None:
        device = self.devices[name]
        below = name.endswith("-base") and name.removesuffix("-base") in self.devices
        if device.open or below:
            if not later:
                raise OSError(errno.EBUSY, "Device or resource busy")
            device.going = True
            return
        del self.devices[name]
        (self._nodes / f"dm-{device.minor}").unlink(missing_ok=True)
        for held in device.holds:
            os.close(held)
        base = self.devices.get(f"{name}-base")
        if base is not None and base.going:
            self._remove(f"{name}-base", later=True)

    def close(self, name: str) -> None:
        """Nobody has the device open any more."""
        self.devices[name].open = 0
        if self.devices[name].going:
            self._remove(name, later=True)


def install(directory: Path, patch: pytest.MonkeyPatch) -> Mapper:
    """Put one in the kernel's place; `directory` is empty."""
    mapper = Mapper(directory)
    (directory / "control").touch()
    patch.setattr(devmapper, "CONTROL", directory / "control")
    patch.setattr(devmapper, "NODES", directory)
    patch.setattr(devmapper, "fcntl", mapper)
    return mapper
