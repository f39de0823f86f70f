"""OCI layouts and docker archives, unpacked by the real tools and made images of, but for a kernel that runs.

Needs root, no network: the trees' apt is a script of the test's.
"""

import asyncio
import contextlib
import gzip
import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import msgspec
import psutil
import pytest

from banger.config import Settings
from banger.images import oci_packages
from banger.images.catalog import find_image, list_images, measure_parts, part_path, publish, workspace
from banger.images.initramfs import pack
from banger.images.oci_unpack import PROGRAMS, Unpacked, Unpacker
from banger.jobs.operations import Operations
from banger.model.errors import Invalid
from banger.model.image import INIT_VERSION, Image, ImportSpec, OciOptions
from banger.model.operation import Operation, OperationState
from banger.paths import ImagePaths, Paths
from banger.service.admission import Admission
from banger.service.appliance import Appliance
from banger.service.oci import OciImports
from banger.store.db import open_database
from banger.store.operations import OperationStore
from banger.system.ext4 import MIB, make_ext4
from banger.system.files import mounts_below
from tests.support.oci import (
    Member,
    Picture,
    blob,
    folder,
    hard_link,
    layer,
    manifest_of,
    symlink,
    write_docker_archive,
    write_layout,
    write_tar,
)
from tests.unit.images.recorder import Recorder
from tests.unit.images.tiny import read, room
from tests.unit.service.test_drafts import World

_ABSENT = [package for program, package in PROGRAMS.items() if shutil.which(program) is None]
pytestmark = [
    pytest.mark.host,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.skipif(bool(_ABSENT), reason=f"not installed: {', '.join(_ABSENT)}"),
]

LIMIT = 1 << 30
RELEASE = "6.1.0-test"
LOWER = layer(
    folder("etc"),
    Member("etc/kept", b"kept"),
    Member("etc/gone", b"gone"),
    hard_link("etc/second", "etc/kept"),
    folder("old"),
    Member("old/a", b"a"),
    folder("private", mode=0o700),
    Member("su", b"su", mode=0o4755, uid=7),
    Member("dev/null", kind=tarfile.CHRTYPE),
)
UPPER = layer(
    Member("etc/.wh.gone"),
    folder("old"),
    Member("old/.wh..wh..opq"),
    Member("old/new", b"new"),
    Member("etc/kept", b"new"),
)
PICTURE = Picture([LOWER, UPPER])


def _unpack(path: Path, work: Path, tag: str = "") -> Unpacked:
    work.mkdir()
    return asyncio.run(Unpacker(path, work, tag=tag, limit=LIMIT, room=room, progress=Recorder()).run())


def _forms(directory: Path) -> dict[str, Path]:
    """One image in every form that is taken."""
    directory.mkdir()
    write_layout(directory / "layout:odd name", PICTURE)
    write_layout(directory / "plain", Picture(PICTURE.layers, compress=False))
    docker = write_docker_archive(directory / "docker.tar", PICTURE)
    (directory / "docker.tar.gz").write_bytes(gzip.compress(docker.read_bytes()))
    oci = write_tar(directory / "oci.tar", directory / "plain")
    (directory / "oci.tar.gz").write_bytes(gzip.compress(oci.read_bytes()))
    return {path.name: path for path in directory.iterdir()}


@pytest.mark.parametrize("form", ["layout:odd name", "plain", "docker.tar", "docker.tar.gz", "oci.tar", "oci.tar.gz"])
def test_layers_lie_over_each_other_whatever_they_come_in(tmp_path: Path, form: str) -> None:
    unpacked = _unpack(_forms(tmp_path / "forms")[form], tmp_path / "work")
    tree = unpacked.tree
    assert (tree / "etc/kept").read_bytes() == b"new"
    assert (tree / "etc/second").read_bytes() == b"kept"
    assert [path.name for path in (tree / "old").iterdir()] == ["new"]
    assert sorted(path.name for path in (tree / "etc").iterdir()) == ["kept", "second"]
    su = (tree / "su").stat()
    assert (su.st_mode & 0o7777, su.st_uid) == (0o4755, 7)
    assert (tree / "private").stat().st_mode & 0o7777 == 0o700
    assert not (tree / "dev/null").exists()
    assert unpacked.config.config is not None
    assert unpacked.config.config.working_dir == "/srv"


def test_one_of_two_images_is_unpacked(tmp_path: Path) -> None:
    other = Picture([layer(Member("other", b""))])
    archive = write_docker_archive(tmp_path / "a.tar", PICTURE, other, tags=("a:1", "b:2"))
    assert (_unpack(archive, tmp_path / "docker", "b:2").tree / "other").exists()
    write_layout(tmp_path / "layout", PICTURE, other, tags=("a:1", "b:2"))
    assert (_unpack(tmp_path / "layout", tmp_path / "oci", "b:2").tree / "other").exists()


def test_links_of_one_layer_do_not_lead_another_out_of_the_tree(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    climb = "../" * 30 + str(outside).lstrip("/")
    links = layer(symlink("absolute", str(outside)), symlink("relative", climb), symlink("etc", "/etc"))
    through = layer(Member("absolute/x", b"x"), Member("relative/x", b"x"), Member("etc/banger-was-here", b"x"))
    write_layout(tmp_path / "layout", Picture([links, through]))
    with contextlib.suppress(Invalid):  # to refuse is as good
        _unpack(tmp_path / "layout", tmp_path / "work")
    assert list(outside.iterdir()) == []
    assert not Path("/etc/banger-was-here").exists()


def _wrong_digest(layout: Path) -> None:
    path = blob(layout, manifest_of(layout)["layers"][1]["digest"])
    right = path.stat().st_size
    path.write_bytes(gzip.compress(layer(Member("evil", b"evil"))).ljust(right, b"\0")[:right])


def _flipped_byte(layout: Path) -> None:
    path = blob(layout, manifest_of(layout)["layers"][0]["digest"])
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _truncated(layout: Path) -> None:
    path = blob(layout, manifest_of(layout)["layers"][0]["digest"])
    path.write_bytes(path.read_bytes()[:-10])


def _gone(layout: Path) -> None:
    blob(layout, manifest_of(layout)["layers"][0]["digest"]).unlink()


def _endless(layout: Path) -> None:
    path = blob(layout, manifest_of(layout)["layers"][0]["digest"])
    path.unlink()
    path.symlink_to("/dev/zero")


def _configuration(layout: Path) -> None:
    path = blob(layout, manifest_of(layout)["config"]["digest"])
    path.write_bytes(path.read_bytes().replace(b"/srv", b"/srx"))


def _script(text: str) -> Member:
    return Member("usr/bin/apt-get", f"#!/bin/sh\nset -e\n{text}".encode(), mode=0o755)


# What it is to install, and what it finds while it does: told in a file of the tree, as nothing else is of use.
APT = """
[ "$1" != update ] || exit 0
[ "$1" != clean ] || exit 0
{
    echo "$@"
    /usr/sbin/policy-rc.d; echo "services: $?"
    wc -l </etc/resolv.conf
    (: >>/proc/sys/kernel/printk) 2>/dev/null && echo "steers the kernel"
    mknod /var/node b 7 0 2>/dev/null && echo "makes devices"
    mount -t proc proc /mnt 2>/dev/null && echo "mounts"
    [ "$(ls -d /proc/[0-9]* | wc -l)" -gt 10 ] && echo "sees processes"
    chown 7:7 /etc/os-release || echo "cannot own files"
} >/var/found || true
mkdir -p /usr/lib/systemd
echo >/usr/lib/systemd/systemd
ln -s ../lib/systemd/systemd /usr/sbin/init
echo '#!/bin/sh' >/usr/bin/python3.11
chmod 755 /usr/bin/python3.11
ln -s python3.11 /usr/bin/python3
mkdir -p /run/left /tmp/left
"""


STATUS = b"Package: bash\nStatus: install ok installed\nArchitecture: amd64\nVersion: 5\n"


def _system(*members: Member, apt: str = APT) -> bytes:
    """A layer with as much of a Debian as an import asks for."""
    busybox = Path("/bin/busybox").read_bytes()
    programs = ("sh", "mkdir", "ln", "chmod", "chown", "ls", "wc", "mknod", "mount", "setsid", "sleep", "touch")
    return layer(
        *(folder(name) for name in ("usr", "usr/bin", "usr/sbin", "usr/lib", "etc", "etc/apt", "var", "mnt", "root")),
        *(symlink(name, f"usr/{name}") for name in ("bin", "sbin", "lib")),
        Member("usr/bin/busybox", busybox, mode=0o755),
        *(symlink(f"usr/bin/{name}", "busybox") for name in programs),
        Member("etc/os-release", b'ID=debian\nVERSION_ID="12"\nPRETTY_NAME="Debian of the test"\n'),
        Member("etc/apt/sources.list", b"deb http://mirror.invalid/debian bookworm main\n"),
        Member("var/lib/dpkg/status", STATUS),
        _script(apt),
        *members,
    )


class Import:
    """A daemon's worth of imports, and an image that lends its kernel."""

    def __init__(self, world: World) -> None:
        self.world = world
        admission = Admission(world.paths, Settings(disk_reserve_mib=0))
        self.imports = OciImports(world.paths, world.operations, world.bundle, world.drafts, admission, LIMIT)

    def begin(self, path: Path, **options: object) -> Operation:
        oci = msgspec.convert({"size_bytes": 768 * MIB, **options}, OciOptions)
        return self.imports.import_image(ImportSpec(path=str(path), name="new", oci=oci))

    async def run(self, path: Path, **options: object) -> Operation:
        operation = await self.world.operations.wait(self.begin(path, **options).id)
        assert list(self.world.paths.images.glob(".*")) == []
        assert mounts_below(self.world.paths.images) == []
        assert not [p for p in psutil.process_iter(["cmdline"]) if p.info["cmdline"] == ["sleep", "98761"]]
        return operation

    def notes(self, operation: Operation) -> list[str]:
        return [str(event.data["text"]) for event in self.world.operations.events(operation.id) if "text" in event.data]

    def inside(self, command: str) -> str:
        return read(part_path(self.world.paths, find_image(self.world.paths, "new"), "root"), command)


async def _lender(paths: Paths) -> None:
    async with workspace(paths) as work:
        out, modules = ImagePaths(work / "image"), work / f"tree/usr/lib/modules/{RELEASE}"
        (modules / "kernel").mkdir(parents=True)
        (modules / "modules.dep").write_text("kernel/a.ko:\n")
        (modules / "kernel/a.ko").write_text("module")
        (modules / "build").symlink_to("/usr/src")
        out.directory.mkdir()
        await make_ext4(out.root, 16 * MIB, label="tiny", tree=work / "tree")
        out.kernel.write_bytes(b"kernel")
        out.initramfs.write_bytes(pack(b"box", []))
        roles = {"root": out.root, "kernel": out.kernel, "initramfs": out.initramfs}
        image = Image(
            name="lender", distro="debian", release="12", kernel_release=RELEASE, boot_args="rootfstype=ext4",
            parts=measure_parts(out.directory, roles), packages=0, created_at="2026-01-01T00:00:00+00:00",
            origin="test", needs_acpi=True, init_version=INIT_VERSION,
        )  # fmt: skip
        publish(paths, image, out.directory)


@pytest.fixture
def play(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Import], object]], None]:
    async def boots(*_: object) -> None:
        """The kernel of these images is none."""

    monkeypatch.setattr(Appliance, "boot", boots)

    def run(scene: Callable[[Import], object]) -> None:
        async def main() -> None:
            with contextlib.closing(open_database(tmp_path / "db")) as database:
                world = World(tmp_path, Operations(OperationStore(database)))
                await world.bundle.open()
                await _lender(world.paths)
                async with asyncio.timeout(120):
                    done = scene(Import(world))
                    assert asyncio.iscoroutine(done)
                    await done
                    await world.operations.close()

        asyncio.run(main())

    return run


Play = Callable[[Callable[[Import], object]], None]


def test_a_container_image_becomes_a_machines(tmp_path: Path, play: Play) -> None:
    policy = Member("usr/sbin/policy-rc.d", b"#!/bin/sh\nexit 3\n", mode=0o755)
    write_layout(tmp_path / "layout", Picture([_system(policy), layer(Member("etc/apt/.wh.none"))]))

    async def scene(world: Import) -> None:
        operation = await world.run(tmp_path / "layout")
        assert operation.error is None
        image = find_image(world.world.paths, "new")
        assert (image.distro, image.release, image.kernel_release) == ("debian", "12", RELEASE)
        assert "latest" in image.origin
        assert "sha256:" in image.origin
        assert image.parents == ()
        found = world.inside("cat /var/found").splitlines()
        assert found[0].startswith("install")
        assert "systemd-sysv" in found[0]
        assert " bash" not in found[0]
        # no services are started, names can be resolved, and the host is out of reach
        assert found[1] == "services: 101"
        assert found[3:] == []
        assert world.inside("cat /usr/sbin/policy-rc.d") == "#!/bin/sh\nexit 3\n"
        assert "File not found" in _said(world, "/etc/resolv.conf")
        assert world.inside(f"cat /usr/lib/modules/{RELEASE}/kernel/a.ko") == "module"
        assert "File not found" in _said(world, f"/usr/lib/modules/{RELEASE}/build")
        assert "ExecStart" in world.inside("cat /etc/systemd/system/banger-agent.service")
        assert "export GREETING=" in world.inside("cat /etc/profile.d/zz-image.sh")
        assert "left" not in world.inside("ls /run") + world.inside("ls /tmp")
        notes = world.notes(operation)
        assert "not kept by a machine: cmd /bin/sh" in notes
        assert any("no `vm ssh`" in note for note in notes)

    play(scene)


def _said(world: Import, path: str) -> str:
    import subprocess

    root = part_path(world.world.paths, find_image(world.world.paths, "new"), "root")
    argv = ["debugfs", "-R", f"stat {path}", str(root)]
    return subprocess.run(argv, capture_output=True, check=True, text=True, timeout=30).stderr


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (_wrong_digest, "another digest"),
        (_flipped_byte, "another digest"),
        (_configuration, "another digest"),
        (_truncated, "no file of"),
        (_gone, "is missing"),
        (_endless, "no file of"),
    ],
)
def test_a_layout_that_was_tampered_with_is_refused_and_leaves_nothing(
    tmp_path: Path, play: Play, harm: Callable[[Path], None], said: str
) -> None:
    write_layout(tmp_path / "layout", PICTURE)
    harm(tmp_path / "layout")

    async def scene(world: Import) -> None:
        operation = await world.run(tmp_path / "layout")
        assert operation.state is OperationState.FAILED
        assert operation.error is not None
        assert operation.error["code"] == "invalid"
        assert said in operation.error["message"]
        assert [image.name for image in list_images(world.world.paths)] == ["lender"]

    play(scene)


def test_a_layer_of_a_docker_archive_that_was_changed_is_refused(tmp_path: Path, play: Play) -> None:
    archive = write_docker_archive(tmp_path / "a.tar", PICTURE)
    archive.write_bytes(archive.read_bytes().replace(b"gone\0", b"evil\0", 1))

    async def scene(world: Import) -> None:
        operation = await world.run(archive)
        assert operation.error is not None
        assert "another digest" in operation.error["message"]

    play(scene)


def test_what_is_missing_is_named_where_nothing_may_be_installed(tmp_path: Path, play: Play) -> None:
    write_layout(tmp_path / "layout", Picture([_system(apt="touch /was-run\n")]))

    async def scene(world: Import) -> None:
        operation = await world.run(tmp_path / "layout", install=False)
        assert operation.error is not None
        assert operation.error["code"] == "unsupported"
        assert "Debian of the test" in operation.error["message"]
        assert "python3" in operation.error["message"]
        assert "--no-install" in operation.error["hint"]

    play(scene)


def test_apt_that_fails_is_quoted_and_what_it_started_ends(tmp_path: Path, play: Play) -> None:
    apt = "setsid sleep 98761 >/dev/null 2>&1 &\necho 'E: the archive is on fire'\nexit 100\n"
    write_layout(tmp_path / "layout", Picture([_system(apt=apt)]))

    async def scene(world: Import) -> None:
        operation = await world.run(tmp_path / "layout")
        assert operation.error is not None
        assert "the archive is on fire" in operation.error["message"]

    play(scene)


def test_a_cancelled_import_leaves_nothing(tmp_path: Path, play: Play) -> None:
    write_layout(
        tmp_path / "layout", Picture([_system(apt="setsid sleep 98761 & \necho 'Get:1 begun'\nsleep 98761\n")])
    )

    async def scene(world: Import) -> None:
        operation = world.begin(tmp_path / "layout")
        async for event in world.world.operations.follow(operation.id):
            if event.data.get("unit") == "downloads":
                world.world.operations.cancel(operation.id)
        ended = world.world.operations.find(operation.id)
        assert ended.state is OperationState.CANCELLED
        assert [image.name for image in list_images(world.world.paths)] == ["lender"]
        assert [path.name for path in world.world.paths.images.iterdir()] == ["lender"]

    play(scene)
    assert not [p for p in psutil.process_iter(["cmdline"]) if p.info["cmdline"] == ["sleep", "98761"]]


def test_another_distribution_without_what_is_needed_is_refused_by_name(tmp_path: Path, play: Play) -> None:
    release = Member("etc/os-release", b'ID=alpine\nVERSION_ID=3.19\nPRETTY_NAME="Alpine Linux v3.19"\n')
    write_layout(tmp_path / "layout", Picture([layer(release)]))

    async def scene(world: Import) -> None:
        operation = await world.run(tmp_path / "layout")
        assert operation.error is not None
        assert operation.error["code"] == "unsupported"
        assert "Alpine Linux v3.19" in operation.error["message"]
        assert "systemd" in operation.error["message"]

    play(scene)


def test_an_image_for_another_machine_is_refused(tmp_path: Path, play: Play) -> None:
    write_layout(tmp_path / "layout", Picture([LOWER], architecture="arm64"))

    async def scene(world: Import) -> None:
        operation = await world.run(tmp_path / "layout")
        assert operation.error is not None
        assert "arm64" in operation.error["message"]

    play(scene)


def test_a_size_that_is_too_small_is_told_with_the_one_that_is_enough(tmp_path: Path, play: Play) -> None:
    write_layout(tmp_path / "layout", Picture([_system()]))

    async def scene(world: Import) -> None:
        operation = await world.run(tmp_path / "layout", size_bytes=64 * MIB)
        assert operation.error is not None
        assert "does not fit" in operation.error["message"]
        assert "--size" in operation.error["hint"]

    play(scene)


def test_without_an_image_that_lends_its_kernel_it_is_said_what_to_do(tmp_path: Path, play: Play) -> None:
    write_layout(tmp_path / "layout", PICTURE)

    async def scene(world: Import) -> None:
        shutil.rmtree(world.world.paths.images / "lender")
        with pytest.raises(Exception, match="no kernel") as caught:
            world.begin(tmp_path / "layout")
        assert "image bootstrap debian" in getattr(caught.value, "hint", "")

    play(scene)


def test_a_tree_without_package_sources_gets_the_hosts(
    tmp_path: Path, play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(oci_packages, "host_sources", lambda codename: [f"deb http://mirror.invalid {codename} main"])
    write_layout(tmp_path / "layout", Picture([_system(), layer(Member("etc/apt/.wh.sources.list"))]))

    async def scene(world: Import) -> None:
        assert (await world.run(tmp_path / "layout")).error is None
        assert "bookworm" in world.inside("cat /etc/apt/sources.list.d/banger-import.list")

    play(scene)


def test_directories_without_an_end_are_refused_and_leave_nothing(tmp_path: Path, play: Play) -> None:
    deep = [layer(folder("/".join("d" * 150))), layer(symlink("further", "/".join("d" * 150)))]
    write_layout(tmp_path / "layout", Picture([*deep, layer(folder("further/" + "/".join("e" * 100)))]))

    async def scene(world: Import) -> None:
        operation = await world.run(tmp_path / "layout")
        assert operation.error is not None
        assert operation.error["code"] == "invalid"

    play(scene)


def test_a_small_archive_that_unpacks_without_an_end_is_refused(tmp_path: Path, play: Play) -> None:
    with gzip.open(tmp_path / "a.tar.gz", "wb", 1) as bomb:
        for _ in range(200):
            bomb.write(bytes(MIB))

    async def scene(world: Import) -> None:
        operation = await world.run(tmp_path / "a.tar.gz", size_bytes=64 * MIB)
        assert operation.error is not None
        assert "more than may be imported" in operation.error["message"]

    play(scene)
