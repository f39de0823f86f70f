"""The images as a whole, as the service offers them: who uses which, and what may be done to them then."""

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from banger.images.catalog import MOVING, find_image, part_path
from banger.images.locks import image_in_use
from banger.jobs.operations import Job, Operations
from banger.model.catalogue import PrunedKind, PruneSpec
from banger.model.errors import BangerError, Busy, Conflict, Invalid, NotFound
from banger.model.image import ImagePart
from banger.model.operation import Operation
from banger.model.vm import VmState
from banger.paths import Paths
from banger.service.catalogue import Catalogue
from banger.store.db import open_database
from banger.store.operations import OperationStore
from banger.store.vms import VmStore
from tests.unit.images.older import make_older, publish_small, rewrite, written
from tests.unit.service.operating import Operating
from tests.unit.test_store import make_vm


class Bench(Operating):
    """Three images: `debian`, and `child` and `other` of which the first was made of it."""

    def __init__(self, directory: Path, vms: VmStore, operations: Operations) -> None:
        self.paths = Paths(directory / "s", directory / "r", directory / "c")
        self.paths.cache.mkdir()
        self.vms, self.operations = vms, operations
        self.catalogue = Catalogue(self.paths, vms, operations, 14.0)
        publish_small(self.paths, "debian")
        publish_small(self.paths, "child", parents=("debian",))
        publish_small(self.paths, "other")

    def vm(self, name: str, image: str, state: VmState = VmState.STOPPED) -> None:
        vm = make_vm(name, name.encode().hex().ljust(12, "0")[:12])
        self.vms.add(msgspec.structs.replace(vm, image=image, state=state, process=None))

    def refused(self, begin: Callable[[], Operation], kind: type[BangerError], match: str) -> BangerError:
        before = self.names()
        error = super().refused(begin, kind, match)
        assert self.names() == before
        return error

    def names(self) -> list[str]:
        """Everything in the images' directory."""
        return sorted(path.name for path in self.paths.images.iterdir())


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with contextlib.closing(open_database(tmp_path / "db")) as database:
        yield Bench(tmp_path, VmStore(database), Operations(OperationStore(database)))


def register_small(bench: Bench, name: str, files: Path) -> Path:
    """An image whose root lies elsewhere, among somebody's files; that file."""
    publish_small(bench.paths, name)
    files.mkdir()
    root = files / "mine.img"
    bench.paths.image(name).root.rename(root)
    document = written(bench.paths, name) | {"managed": False}
    document["parts"]["root"] |= {"file": str(root), "modified_ns": root.stat().st_mtime_ns}
    rewrite(bench.paths, name, document)
    return root


def test_what_is_told_of_an_image(bench: Bench) -> None:
    bench.vm("a", "debian")
    bench.vm("b", "debian", VmState.RUNNING)
    bench.vm("c", "other")
    told = bench.catalogue.show("debian")
    assert told.vms == ("a", "b")
    assert told.children == ("child",)
    assert told.parts == find_image(bench.paths, "debian").parts
    assert told.allocated_bytes >= 4096
    assert {image.name: image for image in bench.catalogue.list()}["debian"] == told
    assert [image.name for image in bench.catalogue.list()] == ["child", "debian", "other"]
    with pytest.raises(NotFound):
        bench.catalogue.show("nothing")


def test_damaged_ones_are_listed_with_what_is_wrong(bench: Bench) -> None:
    bench.paths.image("other").kernel.unlink()
    rewrite(bench.paths, "debian", {"format": 99})
    told = {image.name: image for image in bench.catalogue.list()}
    assert "vmlinux is missing" in told["other"].problem
    assert told["other"].distro == "debian"
    assert "format 99" in told["debian"].problem
    assert told["debian"].parts == {}
    assert told["child"].problem == ""
    with pytest.raises(Invalid, match="vmlinux is missing"):
        bench.catalogue.show("other")


def test_an_image_is_deleted_whole(bench: Bench) -> None:
    bench.done(lambda: bench.catalogue.delete("other"))
    assert bench.names() == ["child", "debian"]
    bench.refused(lambda: bench.catalogue.delete("other"), NotFound, "no image other")
    bench.refused(lambda: bench.catalogue.delete("../child"), Invalid, "valid image name")


@pytest.mark.parametrize("state", [VmState.STOPPED, VmState.RUNNING, VmState.CREATING, VmState.FAILED])
def test_vms_that_use_an_image_are_named_and_no_force_deletes_or_renames_it(bench: Bench, state: VmState) -> None:
    bench.vm("a", "other", state)
    for begin in (
        lambda: bench.catalogue.delete("other"),
        lambda: bench.catalogue.delete("other", force=True),
        lambda: bench.catalogue.rename("other", "new"),
    ):
        error = bench.refused(begin, Conflict, "the VM a$")
        assert "banger vm delete a" in error.hint
        assert "banger vm set a --image" in error.hint
        assert error.details == {"vms": ["a"]}
    bench.vm("b", "other", state)
    bench.refused(lambda: bench.catalogue.delete("other"), Conflict, "used by the VMs a, b")


def test_children_are_named_and_stay_as_they_are_when_force_is_used(bench: Bench) -> None:
    error = bench.refused(
        lambda: bench.catalogue.delete("debian"), Conflict, "the image child was made of the image debian"
    )
    assert "--force" in error.hint
    assert error.details == {"images": ["child"]}
    bench.paths.image("child").kernel.unlink()
    bench.refused(lambda: bench.catalogue.delete("debian"), Conflict, "child")  # damaged, and a child still
    child = bench.paths.image("child").metadata.read_bytes()
    bench.done(lambda: bench.catalogue.delete("debian", force=True))
    assert bench.names() == ["child", "other"]
    assert bench.paths.image("child").metadata.read_bytes() == child


def test_a_vm_that_comes_between_the_request_and_the_work_keeps_its_image(bench: Bench) -> None:
    async def main() -> list[Operation]:
        ended = []
        begins: list[Callable[[], Operation]] = [
            lambda: bench.catalogue.delete("other"),
            lambda: bench.catalogue.rename("other", "new"),
        ]
        for number, begin in enumerate(begins):
            operation = begin()
            bench.vm(f"late-{number}", "other")
            ended.append(await bench.operations.wait(operation.id))
            bench.vms.remove(bench.vms.find(f"late-{number}").id)
        return ended

    for number, ended in enumerate(asyncio.run(main())):
        assert ended.error is not None
        assert (ended.error["code"], f"late-{number}" in ended.error["message"]) == ("conflict", True)
    assert bench.names() == ["child", "debian", "other"]


def test_what_is_being_made_of_an_image_keeps_it(bench: Bench) -> None:
    with image_in_use(bench.paths.image("other").root):
        for begin in (lambda: bench.catalogue.delete("other"), lambda: bench.catalogue.rename("other", "new")):
            ended = bench.run(begin)
            assert ended.error is not None
            assert "in use" in ended.error["message"]
    assert bench.names() == ["child", "debian", "other"]


def test_damaged_images_can_be_deleted(bench: Bench) -> None:
    bench.paths.image("other").metadata.unlink()
    bench.done(lambda: bench.catalogue.delete("other"))
    assert bench.names() == ["child", "debian"]


def test_of_a_registered_image_nothing_of_the_persons_goes(bench: Bench, tmp_path: Path) -> None:
    root = register_small(bench, "mine", tmp_path / "files")
    told = bench.catalogue.show("mine")
    assert not told.managed
    assert part_path(bench.paths, told, "root") == root
    with image_in_use(root, "mine"):
        ended = bench.run(lambda: bench.catalogue.delete("mine"))
        assert ended.error is not None
        assert "the image mine is in use" in ended.error["message"]
    bench.done(lambda: bench.catalogue.rename("mine", "ours"))
    assert bench.catalogue.show("ours").parts["root"] == told.parts["root"]
    bench.done(lambda: bench.catalogue.delete("ours"))
    assert bench.names() == ["child", "debian", "other"]
    assert root.read_bytes() == b"root"


def test_a_registered_image_whose_files_are_not_what_they_were_says_so(bench: Bench, tmp_path: Path) -> None:
    root = register_small(bench, "mine", tmp_path / "files")
    root.chmod(0o600)
    root.write_bytes(b"toor")
    with pytest.raises(Invalid, match=f"{root} was changed after it was registered") as caught:
        bench.catalogue.show("mine")
    assert "banger image register mine" in caught.value.hint
    root.write_bytes(b"longer")
    with pytest.raises(Invalid, match="has 6 bytes, and had 4"):
        bench.catalogue.show("mine")
    root.unlink()
    with pytest.raises(Invalid, match=f"{root} is gone"):
        bench.catalogue.show("mine")
    root.mkdir()
    with pytest.raises(Invalid, match="is no file any more"):
        bench.catalogue.show("mine")


def test_only_registered_images_have_parts_elsewhere(bench: Bench) -> None:
    document = written(bench.paths, "other")
    document["parts"]["kernel"] = msgspec.to_builtins(
        ImagePart("/etc/hostname", Path("/etc/hostname").stat().st_size, "")
    )
    rewrite(bench.paths, "other", document)
    with pytest.raises(Invalid, match="a file outside it"):
        bench.catalogue.show("other")


def test_renamed_it_is_there_under_its_new_name_alone(bench: Bench) -> None:
    told = bench.done(lambda: bench.catalogue.rename("debian", "base"))
    assert told["name"] == "base"
    assert bench.names() == ["base", "child", "other"]
    assert bench.catalogue.show("base").children == ("child",)
    bench.refused(lambda: bench.catalogue.rename("base", "other"), Conflict, "an image other already")
    bench.refused(lambda: bench.catalogue.rename("debian", "new"), NotFound, "no image debian")
    bench.refused(lambda: bench.catalogue.rename("base", "New"), Invalid, "valid image name")


def test_while_an_operation_works_on_it_or_makes_the_new_name_it_is_busy(bench: Bench) -> None:
    async def main() -> None:
        held = asyncio.Event()

        async def work(_: Job) -> None:
            await held.wait()

        for target in ("image/other", "image/new"):
            operation = bench.operations.begin("image.bootstrap", target, work)
            with pytest.raises(Busy):
                bench.catalogue.rename("other", "new")
            held.set()
            await bench.operations.wait(operation.id)
            held.clear()

    asyncio.run(main())


def test_at_the_start_what_was_being_renamed_is_settled(bench: Bench) -> None:
    bench.paths.image("other").directory.rename(bench.paths.images / f"{MOVING}other")
    (bench.paths.cache / ".pruned-1" / "0").mkdir(parents=True)
    asyncio.run(bench.catalogue.sweep())
    assert bench.names() == ["child", "debian", "other"]
    assert list(bench.paths.cache.iterdir()) == []


def litter(paths: Paths) -> list[Path]:
    """Something of each kind."""
    found = [
        paths.layers / "abc.qcow2",
        paths.imports / "left",
        paths.downloads / "opencode.tgz",
        paths.cache / "debian" / "a.deb",
        paths.image("debian").directory / "work-seed-0123abcd.ext4",
    ]
    (paths.layers / "abc.json").parent.mkdir()
    (paths.layers / "abc.json").write_bytes(b"{}")
    for file in found:
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(b"x" * 4096)
    return found


def test_prune_removes_what_can_be_made_again_and_all_of_it_when_asked(bench: Bench) -> None:
    layer, left, download, package, part = litter(bench.paths)
    for everything in (False, True):
        spec = PruneSpec(all=everything, dry_run=True)
        told = bench.done(lambda spec=spec: bench.catalogue.prune(spec))  # type: ignore[misc]
        assert told["dry_run"]
        assert all(file.exists() for file in (layer, left, download, package, part))
    assert {one["kind"]: one["files"] for one in told["kinds"]} == {
        "layers": 2, "imports": 1, "replaced parts": 1, "downloads": 1, "packages": 1,
    }  # fmt: skip
    assert told["bytes"] >= 5 * 4096
    told = bench.done(lambda: bench.catalogue.prune(PruneSpec()))
    assert [file.exists() for file in (layer, left, download, package, part)] == [True, False, True, True, False]
    told = bench.done(lambda: bench.catalogue.prune(PruneSpec(all=True)))
    assert not any(file.exists() for file in (layer, download, package))
    assert told["bytes"] == sum(one["bytes"] for one in told["kinds"]) >= 3 * 4096
    assert [image.problem for image in bench.catalogue.list()] == ["", "", ""]
    assert bench.done(lambda: bench.catalogue.prune(PruneSpec(all=True)))["bytes"] == 0


@pytest.mark.parametrize(
    ("kind", "stays"),
    [
        ("image.build", {"layers", "downloads", "packages", "replaced parts"}),
        ("image.import", {"imports", "downloads", "packages", "replaced parts"}),
        ("image.bootstrap", {"downloads", "packages", "replaced parts"}),
        ("engine.install", {"downloads", "packages"}),
        ("vm.create", {"replaced parts"}),
        ("volume.delete", set()),
    ],
)
def test_prune_leaves_what_an_operation_may_use_and_says_so(bench: Bench, kind: str, stays: set[str]) -> None:
    litter(bench.paths)

    async def main() -> Operation:
        held = asyncio.Event()

        async def work(_: Job) -> None:
            await held.wait()

        other = bench.operations.begin(kind, "something/else", work)
        ended = await bench.operations.wait(bench.catalogue.prune(PruneSpec(all=True)).id)
        held.set()
        await bench.operations.wait(other.id)
        return ended

    ended = asyncio.run(main())
    kinds = msgspec.convert(ended.result["kinds"], list[PrunedKind])
    assert {one.kind for one in kinds if one.left} == stays
    assert all(bool(one.files) != bool(one.left) for one in kinds)


def test_an_older_image_is_told_like_any_other(bench: Bench) -> None:
    make_older(bench.paths, "older", "no manifest", helper="vsock_ping_helper")
    told = bench.catalogue.show("older")
    assert (told.format, told.managed, told.packages, told.problem) == (1, True, 0, "")
    assert "agent" in told.parts
    bench.done(lambda: bench.catalogue.delete("older"))
    assert bench.names() == ["child", "debian", "other"]
