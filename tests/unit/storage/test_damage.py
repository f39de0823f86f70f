"""Filesystems that were damaged, by accident or with intent: mended, or refused and untouched; never anything else."""

import asyncio
import os
import random
import struct
import zlib
from contextlib import nullcontext
from pathlib import Path

import pytest

from banger.model.errors import BangerError
from banger.storage.repair import inspect_home, mend
from banger.system.crc32c import crc32c
from tests.support.work_disks import (
    HOME,
    KEY,
    SMALL,
    Told,
    Tree,
    debugfs,
    digest,
    is_clean,
    make_disk,
    names_in,
    replayable,
)

CASES = int(os.environ.get("BANGER_TEST_DAMAGE", "24"))  # in all
BLOCK = 4096
DEADLINE_S = 60
TREE: Tree = HOME | {f"project/{number}": bytes([number]) * 3000 for number in range(40)} | {"data": b"1" * 5000}


def _outcome(disk: Path) -> str:
    """What mend makes of it: `untouched`, `mended`, or `refused`; nothing else is right."""
    before = digest(disk)

    async def bounded() -> list[str]:
        told = Told()
        async with asyncio.timeout(DEADLINE_S):
            await mend(disk, KEY, told, lambda _: nullcontext())  # type: ignore[arg-type]
        return told.notes

    refused: BangerError | None = None
    try:
        notes = asyncio.run(bounded())
    except BangerError as error:
        refused = error
    assert names_in(disk.parent) == [disk.name]
    if refused is not None:
        assert digest(disk) == before, refused
        assert refused.message.isprintable()
        assert str(disk) in refused.message
        return "refused"
    if digest(disk) == before:
        return "untouched"
    # a journal is replayed without a full check, as a kernel does
    assert is_clean(disk) or [note for note in notes if "not shut down" not in note] == []
    after = digest(disk)
    asyncio.run(bounded())
    assert digest(disk) == after
    assert notes
    return "mended"


def _metadata(disk: Path) -> list[int]:
    """Blocks that hold no file's data: superblock, descriptors, bitmaps, inodes, directories, the journal's first."""
    found = {0, 1}
    for line in debugfs(disk, "stats").splitlines():
        for kind in ("block bitmap at", "inode bitmap at", "inode table at"):
            if kind in line:
                at = int(line.split(kind)[1].split()[0].rstrip(","))
                found |= {at, at + 1} if "table" in kind else {at}
    for name in ("/", "/.ssh", "/project", "<8>"):
        found.add(int(debugfs(disk, f"bmap {name} 0").splitlines()[-1]))
    return sorted(found)


def _damage(disk: Path, chance: random.Random) -> None:
    blocks = _metadata(disk)
    if chance.random() < 0.5:
        replayable(disk, "/data", b"new", checksums=chance.random() < 0.5)
    if chance.random() < 0.6:
        debugfs(disk, f"ssv state {chance.choice([0, 2, 3])}")
    with disk.open("r+b") as file:
        for _ in range(chance.choice([1, 1, 2, 5])):
            block = chance.choice(blocks[1:] if chance.random() < 0.8 else blocks)
            kind = chance.random()
            if kind < 0.3:
                file.seek(block * BLOCK)
                file.write(chance.choice([bytes(BLOCK), b"\xff" * BLOCK, chance.randbytes(BLOCK)]))
            else:
                file.seek(block * BLOCK + chance.randrange(BLOCK - 8))
                file.write(chance.randbytes(chance.choice([1, 2, 4, 8])))


@pytest.mark.parametrize("part", range(8))
def test_damage_by_accident(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: int) -> None:
    monkeypatch.setattr("banger.storage.repair.sync_path", lambda path: None)
    for number in range(CASES // 8):
        chance = random.Random(part * 10000 + number)
        directory = tmp_path / str(number)
        directory.mkdir()
        disk = make_disk(directory / "work.ext4", TREE, options=SMALL)
        _damage(disk, chance)
        _outcome(disk)
        disk.unlink()


def _resealed(raw: bytes) -> bytes:
    """A superblock whose checksum is right, whatever it says."""
    return raw[:0x3FC] + struct.pack("<I", crc32c(raw[:0x3FC]))


@pytest.mark.parametrize("part", range(4))
def test_superblocks_that_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: int) -> None:
    monkeypatch.setattr("banger.storage.repair.sync_path", lambda path: None)
    for number in range(CASES // 4):
        chance = random.Random(part * 10000 + number)
        directory = tmp_path / str(number)
        directory.mkdir()
        disk = make_disk(directory / "work.ext4", HOME if number % 2 else {})
        with disk.open("r+b") as file:
            file.seek(1024)
            raw = bytearray(file.read(1024))
            for _ in range(chance.choice([1, 1, 3])):
                at = chance.randrange(0, 0x160, 4)
                value = chance.choice([0, 1, 0xFFFFFFFF, 0x7FFFFFFF, 1 << chance.randrange(32), chance.getrandbits(32)])
                struct.pack_into("<I", raw, at, value)
            file.seek(1024)
            file.write(_resealed(bytes(raw)))
        _outcome(disk)
        disk.unlink()


def test_looking_into_noise_ends(tmp_path: Path) -> None:
    """Inodes, extents and directories of random bytes, in a filesystem that says it is in order."""
    clean = make_disk(tmp_path / "clean.ext4", TREE)
    blocks = _metadata(clean)[2:]
    whole = clean.read_bytes()
    disk = tmp_path / "work.ext4"
    for seed in range(CASES):
        chance = random.Random(seed)
        raw = bytearray(whole)
        for block in chance.sample(blocks, chance.randrange(1, len(blocks))):
            for _ in range(chance.choice([1, 20, 400])):
                at = block * BLOCK + chance.randrange(0, BLOCK, 4)
                raw[at : at + 4] = chance.choice(
                    [b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x0a\xf3\x04\0", chance.randbytes(4)]
                )
        disk.write_bytes(raw)
        findings = asyncio.run(inspect_home(disk, KEY))
        assert all(line.isprintable() for line in findings.lines)


def test_the_checksum_is_the_one_that_ext4_has() -> None:
    assert crc32c(b"123456789") ^ 0xFFFFFFFF == 0xE3069283  # the check value of CRC-32C
    assert crc32c(b"6789", crc32c(b"12345")) == crc32c(b"123456789")
    assert zlib.crc32(b"123456789") != crc32c(b"123456789")
