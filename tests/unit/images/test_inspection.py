"""What is registered is looked at first: what cannot boot is refused by name, and what is good is known well."""

import asyncio
import shutil
import struct
from pathlib import Path

import pytest

from banger.images.boot import BOOT_ARGS, checked_arguments, with_root_type
from banger.images.initrd import read_initramfs
from banger.images.inspection import Given, Inspected, existing, inspect
from banger.images.root_tree import RootTree
from banger.model.errors import Invalid
from banger.model.image import INIT_VERSION
from banger.paths import ImagePaths
from banger.system.ext4 import MIB, make_ext4
from tests.unit.images.cpios import archive
from tests.unit.images.given import CONFIG, OURS, RELEASE, compressed, make_root, vmlinux, with_config
from tests.unit.images.kernels import elf
from tests.unit.images.tiny import needs_e2fsprogs

pytestmark = needs_e2fsprogs
needs_busybox = pytest.mark.skipif(not Path("/bin/busybox").exists(), reason="busybox-static is not installed")
MODULES = f"usr__lib__modules__{RELEASE}__"
BLK = "kernel/drivers/block/virtio_blk.ko"


class Desk:
    """A directory with files to register."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.out = ImagePaths(directory / "out")
        self.out.directory.mkdir()

    def file(self, name: str, content: bytes) -> Path:
        path = self.directory / name
        path.write_bytes(content)
        return path

    def look(self, root: Path, kernel: bytes, initramfs: bytes | None = OURS, **given: Path) -> Inspected:
        archive = None if initramfs is None else self.file("initrd", initramfs)
        what = Given(root=root, kernel=self.file("kernel", kernel), initramfs=archive, **given)
        return inspect(what, self.out, self.directory, lambda count: None)

    def refused(self, root: Path, kernel: bytes, initramfs: bytes | None = OURS, **given: Path) -> Invalid:
        with pytest.raises(Invalid) as caught:
            self.look(root, kernel, initramfs, **given)
        return caught.value


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def test_files_that_are_good_stay_where_they_are(desk: Desk) -> None:
    root = make_root(desk.directory, usr__local__bin__opencode="x")
    found = desk.look(root, vmlinux())
    assert found.elsewhere == {
        "root": root, "kernel": desk.directory / "kernel", "initramfs": desk.directory / "initrd"
    }  # fmt: skip
    assert found.made == {}
    assert (found.distro, found.release, found.kernel_release) == ("tiny", "7", RELEASE)
    assert (found.has_opencode, found.init_version, found.needs_acpi) == (True, INIT_VERSION, True)
    assert "names of drivers in the kernel" in " ".join(found.notes)


def test_a_compressed_kernel_is_unpacked_beside_it(desk: Desk) -> None:
    found = desk.look(make_root(desk.directory), compressed(with_config()))
    assert set(found.made) == {"kernel", "config"}
    assert found.made["kernel"].read_bytes() == with_config()
    assert found.made["config"].read_bytes() == CONFIG
    assert found.elsewhere["bzimage"] == desk.directory / "kernel"


def test_what_a_configuration_says_counts_wherever_it_is_found(desk: Desk) -> None:
    """In this order: given, beside the kernel, in the kernel, in the root's /boot, modules.builtin, drivers' names."""
    builtin = "\n".join(f"kernel/{name}.ko" for name in ("virtio_pci", "virtio_blk", "ext4"))
    boot = {f"boot__config-{RELEASE}": CONFIG.decode()}
    root = make_root(desk.directory, **boot, **{f"{MODULES}modules.builtin": builtin, f"{MODULES}modules.dep": ""})
    given, beside = desk.file("given", CONFIG), desk.file(f"config-{RELEASE}", CONFIG)

    def source(kernel: bytes, initramfs: bytes | None = OURS, **given: Path) -> str:
        return next(note for note in desk.look(root, kernel, initramfs, **given).notes if "configuration: " in note)

    assert source(with_config(), kernel_config=given).endswith(str(given))
    assert source(with_config()).endswith(str(beside))
    beside.unlink()
    assert source(with_config()).endswith("(IKCONFIG)")
    assert source(vmlinux()).endswith(f"/boot/config-{RELEASE} in the root")
    root = make_root(
        desk.directory, "other.ext4", **{f"{MODULES}modules.builtin": builtin, f"{MODULES}modules.dep": ""}
    )
    assert source(vmlinux(b"")).endswith("modules.builtin")


@pytest.mark.parametrize(
    ("option", "named"),
    [(b"VIRTIO_PCI=y", "a virtio transport"), (b"EXT4_FS=y", "ext4"), (b"DEVTMPFS=y", "CONFIG_DEVTMPFS=y")],
)
def test_a_kernel_that_cannot_reach_its_root_is_refused_by_name(desk: Desk, option: bytes, named: str) -> None:
    error = desk.refused(make_root(desk.directory), with_config(CONFIG.replace(b"CONFIG_" + option, b"")))
    assert named in error.message
    assert RELEASE in error.message


def test_a_driver_that_is_only_a_module_must_be_in_the_initramfs(desk: Desk) -> None:
    root = make_root(desk.directory)
    error = desk.refused(root, with_config(), archive(init=b"#!/bin/sh"))
    assert "lacks virtio_blk" in error.message
    assert "--initramfs" in error.hint
    found = desk.look(root, with_config(), archive(init=b"#!/bin/sh", lib__modules__6__virtio_blk_ko=b"x"))
    assert found.init_version == 0
    assert "no work disk" in " ".join(found.notes)


@needs_busybox
def test_without_an_initramfs_ours_is_made_of_the_roots_own_modules(desk: Desk) -> None:
    files = {f"{MODULES}modules.dep": f"{BLK}:\n", f"{MODULES}modules.builtin": ""}
    root = make_root(desk.directory, **files, **{MODULES + BLK.replace("/", "__"): "\x7fELF"})
    found = desk.look(root, with_config(), None)
    assert found.init_version == INIT_VERSION
    assert read_initramfs(found.made["initramfs"]).modules == {"virtio_blk"}
    assert read_initramfs(found.made["initramfs"]).init_version == INIT_VERSION


@needs_busybox
def test_modules_of_a_directory_come_before_those_of_the_root(desk: Desk) -> None:
    modules = desk.directory / "tree/lib/modules" / RELEASE
    (modules / BLK).parent.mkdir(parents=True)
    (modules / BLK).write_bytes(b"\x7fELF-theirs")
    (modules / "modules.dep").write_text(f"{BLK}:\n")
    root = make_root(desk.directory)
    for given in (modules, modules.parent, desk.directory / "tree"):
        made = desk.look(root, with_config(), None, modules=given).made["initramfs"]
        assert b"\x7fELF-theirs" in made.read_bytes()
        shutil.rmtree(desk.directory / "modules")
    assert "modules.dep" in desk.refused(root, with_config(), None, modules=desk.out.directory).message
    assert "lacks virtio_blk" in desk.refused(root, with_config(), None).message


@needs_busybox
@pytest.mark.parametrize("line", ["../../../etc/shadow:", "/etc/shadow:", "a.ko: " + " ".join(map(str, range(200)))])
def test_modules_that_lead_elsewhere_are_refused(desk: Desk, line: str) -> None:
    name, _, rest = line.partition(":")
    text = f"{name.replace('a.ko', 'virtio_blk.ko')}:{rest}\n" if "a.ko" in line else f"virtio_blk.ko: {name}\n"
    root = make_root(desk.directory, **{f"{MODULES}modules.dep": text, f"{MODULES}virtio_blk.ko": "\x7fELF"})
    assert "modules.dep" in desk.refused(root, with_config(), None).message


def test_an_initramfs_of_an_older_banger_gets_todays_first_process(desk: Desk) -> None:
    found = desk.look(make_root(desk.directory), vmlinux(), OURS.replace(b"banger.work=", b"banger.nope="))
    assert found.init_version == INIT_VERSION
    assert read_initramfs(found.made["initramfs"]).init_version == INIT_VERSION


@pytest.mark.parametrize(
    ("kernel", "what"),
    [
        (b"x" * 5000, "not an x86 bzImage"),
        (elf(machine=183) + bytes(64), "not an x86-64 executable"),
        (elf(note=None) + bytes(64), "no PVH entry"),
        (compressed(vmlinux())[:-20], "truncated"),
    ],
)
def test_what_is_no_kernel_for_a_machine_is_refused(desk: Desk, kernel: bytes, what: str) -> None:
    assert what in desk.refused(make_root(desk.directory), kernel).message


def _disk(kind: str) -> bytes:
    head = bytearray(128 * 1024)
    if kind == "qcow2":
        head[:4] = b"QFI\xfb"
    elif kind == "gpt":
        head[512:520] = b"EFI PART"
    elif kind == "mbr":
        head[510:512] = b"\x55\xaa"
        head[0x1BE + 4] = 0x83
    elif kind == "xfs":
        head[:4] = b"XFSB"
    return bytes(head)


@pytest.mark.parametrize(
    ("kind", "what", "hint"),
    [
        ("qcow2", "is a qcow2", "qemu-img convert"),
        ("gpt", "partition table", "fdisk -l"),
        ("mbr", "partition table", "fdisk -l"),
        ("xfs", "an XFS", "mke2fs"),
        ("zeros", "holds no ext4", "dumpe2fs"),
    ],
)
def test_what_is_no_root_is_called_by_what_it_is(desk: Desk, kind: str, what: str, hint: str) -> None:
    error = desk.refused(desk.file("disk", _disk(kind)), vmlinux())
    assert what in error.message
    assert hint in error.hint


def test_a_root_that_is_mounted_damaged_or_cut_off_is_refused(desk: Desk) -> None:
    root = make_root(desk.directory)
    whole = root.read_bytes()
    root.write_bytes(whole[: 8 * MIB])
    assert "only a part of it" in desk.refused(root, vmlinux()).message
    mounted = bytearray(whole)
    (incompat,) = struct.unpack_from("<I", mounted, 1024 + 0x60)
    struct.pack_into("<I", mounted, 1024 + 0x60, incompat | 0x4)  # a journal to replay
    struct.pack_into("<I", mounted, 1024 + 0x64, struct.unpack_from("<I", mounted, 1024 + 0x64)[0] & ~0x400)
    root.write_bytes(mounted)
    assert "is mounted, or was not unmounted" in desk.refused(root, vmlinux()).message


def test_a_root_without_the_agent_is_taken_and_it_is_said(desk: Desk) -> None:
    root = desk.directory / "bare.ext4"
    asyncio.run(make_ext4(root, 16 * MIB, label="bare"))
    found = desk.look(root, vmlinux())
    assert "banger's agent is not in this root" in " ".join(found.notes)
    assert (found.distro, found.release) == ("", "")


def test_paths_in_a_root_lead_where_its_guest_would_go(tmp_path: Path) -> None:
    tree = tmp_path / "root.ext4.tree"
    (tree / "a/b").mkdir(parents=True)
    (tree / "a/b/long").symlink_to("/" + "x/../" * 30 + "etc/os-release")
    (tree / "a/up").symlink_to("../../../../etc")
    (tree / "a/loop").symlink_to("/a/loop")
    (tree / "a/out").symlink_to("/../../etc/passwd")
    (tree / "x").mkdir()
    with RootTree(make_root(tmp_path)) as root:
        assert b"ID=tiny" in (root.read("/a/b/long", 1000) or b"")
        assert b"ID=tiny" in (root.read("/a/up/os-release", 1000) or b"")
        assert root.has("/lib/banger/banger")
        assert not any(root.has(path) for path in ("/a/loop", "/a/out", "/nothing", "/etc/os-release/x"))
        assert root.read("/a", 1000) is None
        with pytest.raises(Invalid, match="more than the 5"):
            root.read("/etc/os-release", 5)


def test_a_list_of_packages_is_read_in_the_forms_that_people_have(desk: Desk) -> None:
    root = make_root(desk.directory)
    forms = {
        "json": '[{"name": "b", "version": "2", "arch": "all"}, {"name": "a", "version": "1"}, {"no": 1}, 7]',
        "query": "b\t2\nlibc6:amd64\t2.36-9\nthree 3 all\n\nnonsense\n",
        "listed": "||/ Name Version Architecture Description\nii  a  1  amd64  the letter\nrc  b 2 all x\n",
    }
    counts = {}
    for name, text in forms.items():
        counts[name] = desk.look(root, vmlinux(), packages=desk.file(name, text.encode())).packages
    assert counts == {"json": 2, "query": 3, "listed": 1}
    assert '"arch": "amd64"' in desk.out.manifest.read_text()
    error = desk.refused(root, vmlinux(), packages=desk.file("none", b"\x7fELF"))
    assert "lists no packages" in error.message


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match=r"--rootfs: /nowhere: No such file"):
        existing("/nowhere", "rootfs")
    with pytest.raises(Invalid, match="is no regular file"):
        existing(str(tmp_path), "kernel")
    with pytest.raises(Invalid, match="is no directory"):
        existing(__file__, "modules", directory=True)
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(Invalid, match="loop"):
        existing(str(tmp_path / "loop"), "rootfs")


def test_boot_arguments_always_name_the_root_and_its_type() -> None:
    assert checked_arguments("console=ttyS0") == "console=ttyS0 root=/dev/vda rootfstype=ext4"
    assert checked_arguments("") == "root=/dev/vda rootfstype=ext4"
    assert checked_arguments("root=/dev/vdb  quiet") == "root=/dev/vdb quiet rootfstype=ext4"
    assert with_root_type(BOOT_ARGS) == BOOT_ARGS
    for words in ("a\nb", "é", "x" * 1600):
        with pytest.raises(Invalid, match="--boot-args"):
            checked_arguments(words)
