import asyncio
import os
import struct
import subprocess
from pathlib import Path

import pytest

from banger.model.errors import Invalid
from banger.system.ext4 import (
    GROWABLE,
    Damaged,
    Unreadable,
    check_ext4,
    discard_ext4,
    grow_ext4,
    make_ext4,
    read_superblock,
)
from banger.system.ext4_directory import pack
from banger.system.ext4_reader import ROOT_INODE, Entry, Ext4, Inode
from tests.support.work_disks import HOME, MIB, SMALL, Tree, debugfs, make_disk, replayable

BIG: Tree = {
    "empty": b"",
    "small": b"content",
    "large": bytes(range(256)) * 12000,  # 3 MiB: more than twelve blocks, more than one list of them
    "link": "-> small",
    "directory/below/deep": b"deep",
    **{f"many/file number {number:05}": b"%d" % number for number in range(300)},
}
LAYOUTS = {
    "seed": SMALL,
    "1k": ("-b", "1024"),
    "2k": ("-b", "2048"),
    "lists": ("-b", "1024", "-O", "^extents,^64bit"),
    "ext2": ("-O", "^has_journal,^extents,^64bit,^metadata_csum,^flex_bg,^huge_file"),
    "32 bit": ("-O", "^64bit,^metadata_csum"),
    "meta_bg": ("-b", "1024", "-O", "meta_bg,^resize_inode"),
    "small inodes": ("-I", "128"),
    "sparse_super2": ("-b", "1024", "-O", "sparse_super2"),
    "bigalloc": ("-O", "bigalloc"),
}


def _walk(filesystem: Ext4, directory: Inode, path: str = "") -> dict[str, bytes | str | None]:
    found: dict[str, bytes | str | None] = {}
    for entry in filesystem.entries(directory):
        if entry.name in (b".", b"..", b"lost+found"):
            continue
        inode, name = filesystem.inode(entry.inode), path + entry.name.decode()
        if inode.is_directory:
            found |= {name: None} | _walk(filesystem, inode, f"{name}/")
        else:
            found[name] = filesystem.read(inode, 1 << 24) if inode.is_file else "-> small"
    return found


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("indexed", [False, True])
def test_every_layout_is_read(tmp_path: Path, layout: str, indexed: bool) -> None:
    disk = make_disk(tmp_path / "disk", BIG, size=24 * MIB, options=LAYOUTS[layout])
    if indexed:
        subprocess.run(["e2fsck", "-f", "-y", "-D", disk], check=False, capture_output=True, timeout=60)
    with Ext4(disk) as filesystem:
        found = _walk(filesystem, filesystem.inode(ROOT_INODE))
        assert filesystem.find(filesystem.inode(ROOT_INODE), (b"small", b"missing")).keys() == {b"small"}
    assert found == BIG | {"directory": None, "directory/below": None, "many": None}


def test_holes_and_what_is_not_yet_written_read_as_zeros(tmp_path: Path) -> None:
    disk = make_disk(tmp_path / "disk", {"holes": b"", "promised": b""})
    debugfs(
        disk, "fallocate /promised 0 3", "sif /promised size 10000", "fallocate /holes 5 5", "sif /holes size 30000"
    )
    with Ext4(disk) as filesystem:
        found = filesystem.find(filesystem.inode(ROOT_INODE), (b"holes", b"promised"))
        assert filesystem.read(found[b"promised"], MIB) == bytes(10000)
        assert filesystem.read(found[b"holes"], 25000) == bytes(25000)


def test_what_a_superblock_says(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    asyncio.run(make_ext4(disk, 64 * MIB, label="banger-work", options=GROWABLE))
    seen = read_superblock(disk)
    assert (seen.bytes, seen.block_size, seen.label) == (64 * MIB, 4096, "banger-work")
    assert (seen.clean, seen.needs_recovery, seen.has_errors) == (True, False, False)
    said = dict(
        line.split(":", 1)
        for line in debugfs(disk, "stats -h").splitlines()
        if line.startswith(("Filesystem UUID", "Free blocks", "Free inodes"))
    )
    assert said["Filesystem UUID"].strip() == seen.uuid
    assert int(said["Free blocks"]) * 4096 == seen.free_bytes
    assert int(said["Free inodes"]) == seen.free_inodes
    asyncio.run(grow_ext4(disk, 8192 * MIB))
    assert read_superblock(disk).bytes == 8192 * MIB


def test_states_that_a_superblock_tells(tmp_path: Path) -> None:
    disk = make_disk(tmp_path / "disk", HOME | {"data": b"1"})
    for command, errors in (("ssv state 3", True), ("ssv state 0", False), ("ssv last_orphan 12", False)):
        debugfs(disk, command)
        seen = read_superblock(disk)
        assert (seen.clean, seen.has_errors) == (False, errors)
        debugfs(disk, "ssv state 1", "ssv last_orphan 0")
        assert read_superblock(disk).clean
    replayable(disk, "/data", b"2")
    seen = read_superblock(disk)
    assert (seen.clean, seen.needs_recovery, seen.has_errors) == (False, True, False)


def test_a_superblock_that_is_damaged_has_errors(tmp_path: Path) -> None:
    disk = make_disk(tmp_path / "disk", {})
    with disk.open("r+b") as file:
        file.seek(1024 + 0x30)
        file.write(b"\x01\x02\x03")
    assert read_superblock(disk).has_errors


def test_a_label_harms_no_terminal(tmp_path: Path) -> None:
    disk = make_disk(tmp_path / "disk", {}, options=(*SMALL, "-L", "\x1b[2J\u202e"))
    assert read_superblock(disk).label.isprintable()


@pytest.mark.parametrize("content", [b"", b"\0" * 1500, b"\0" * 8192])
def test_what_is_no_ext4(tmp_path: Path, content: bytes) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(content)
    with pytest.raises(Invalid, match="holds no ext4"):
        read_superblock(disk)
    with pytest.raises(Invalid, match="cannot open"):
        read_superblock(tmp_path / "missing")


def test_a_loop_of_extents_ends(tmp_path: Path) -> None:
    disk = make_disk(tmp_path / "disk", {"data": b"1" * 5000})
    block = int(debugfs(disk, "bmap /data 0").splitlines()[-1])
    node = struct.pack("<HHHHI", 0xF30A, 340, 340, 4, 0) + struct.pack("<IIHH", 0, block, 0, 0) * 340
    with disk.open("r+b") as file:
        file.seek(block * 4096)
        file.write(node)
    root = struct.pack("<HHHHI", 0xF30A, 4, 4, 5, 0) + struct.pack("<IIHH", 0, block, 0, 0) * 4
    with Ext4(disk) as filesystem:
        inode = filesystem.find(filesystem.inode(ROOT_INODE), (b"data",))[b"data"]._replace(map=root, size=1 << 40)
        with pytest.raises(Damaged):
            filesystem.read(inode, MIB)


def test_a_directory_beyond_measure_is_not_read(tmp_path: Path) -> None:
    disk = make_disk(tmp_path / "disk", {})
    debugfs(disk, f"sif <2> size {1 << 40}")
    with Ext4(disk) as filesystem, pytest.raises(Unreadable):
        filesystem.find(filesystem.inode(ROOT_INODE), (b"x",))


@pytest.mark.parametrize("block_size", [1024, 4096, 32768])
@pytest.mark.parametrize("checksums", [False, True])
def test_names_are_packed_into_whole_blocks(block_size: int, checksums: bool) -> None:
    entries = [Entry(b".", 2, 2), Entry(b"..", 2, 2)]
    entries += [Entry(os.urandom(1 + number % 255).replace(b"/", b"_"), 12 + number, 1) for number in range(2000)]
    found = []
    for block in pack(entries, block_size, checksums=checksums):
        assert len(block) == block_size - 12 * checksums
        at = 0
        while at < len(block):
            inode, length, name_length, kind = struct.unpack_from("<IHBB", block, at)
            found.append(Entry(block[at + 8 : at + 8 + name_length], inode, kind))
            assert length % 4 == 0
            at += length
        assert at == len(block)
    assert found == entries


def test_blocks_of_files_that_are_gone_become_holes(tmp_path: Path) -> None:
    disk, secret = tmp_path / "disk", tmp_path / "secret"
    asyncio.run(make_ext4(disk, 32 * MIB, label="x"))
    secret.write_bytes(b"a secret\n" * 100_000)
    for command in (f"write {secret} file", f"write {secret} kept", "rm file"):
        subprocess.run(["debugfs", "-w", "-R", command, str(disk)], check=True, capture_output=True)
    before = disk.stat().st_blocks
    asyncio.run(discard_ext4(disk))
    assert disk.read_bytes().count(b"a secret\n") == pytest.approx(100_000, rel=0.01)
    assert disk.stat().st_blocks <= before - 900_000 // 512 * 0.9
    asyncio.run(check_ext4(disk))
