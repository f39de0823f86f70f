"""What an image asks of its machines, or cannot give them, is said before anything is made or stopped."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from banger.jobs.operations import Operations
from banger.model.errors import Invalid
from banger.model.vm import VmChange, VmSpec, VmState
from banger.store.db import open_database
from banger.store.operations import OperationStore
from banger.store.vms import VmStore
from tests.unit.images.tiny import make_image, needs_e2fsprogs
from tests.unit.service.test_volumes import Bench

pytestmark = needs_e2fsprogs


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with contextlib.closing(open_database(tmp_path / "db")) as database:
        yield Bench(tmp_path, VmStore(database), Operations(OperationStore(database)))


def make(bench: Bench, name: str, **changes: object) -> None:
    image = make_image(bench.paths, name, "")
    metadata = bench.paths.image(name).metadata
    metadata.chmod(0o600)
    metadata.write_bytes(msgspec.json.encode(msgspec.structs.replace(image, **changes)))


def test_an_initramfs_of_somebody_elses_mounts_no_work_disk(bench: Bench) -> None:
    make(bench, "theirs", init_version=0)
    bench.volume("notes")
    create, no = bench.service.create, "the image theirs is not banger's, and mounts no work disk"
    for spec in (VmSpec(image="theirs", work_disk_bytes=1 << 30), VmSpec(image="theirs", volume="notes")):
        error = bench.refused(lambda spec=spec: create(spec), Invalid, no)  # type: ignore[misc]
        assert "leave --" in error.hint
    bench.change(image="theirs")
    bench.refused(lambda: bench.volumes.attach("notes", "a"), Invalid, no)
    bench.give_work_disk()
    bench.refused(lambda: bench.service.change("a", VmChange(image="theirs")), Invalid, no)
    assert [vm.name for vm in bench.vms.all()] == ["a"]
    assert bench.operations.all(10) == []


def test_an_image_that_needs_more_memory_is_refused_with_how_much(bench: Bench) -> None:
    make(bench, "large", memory_mib=2048)
    needs = "the image large needs 2048 MiB of memory, and 1024 MiB"
    error = bench.refused(lambda: bench.service.create(VmSpec(image="large")), Invalid, needs)
    assert "--memory 2048M" in error.hint
    bench.change(memory_mib=1024)
    bench.refused(lambda: bench.service.change("a", VmChange(image="large")), Invalid, needs)
    bench.change(image="large")
    error = bench.refused(lambda: bench.service.start("a"), Invalid, needs)
    assert "--keep-work-disk a" in error.hint
    bench.change(state=VmState.RUNNING)
    bench.refused(lambda: bench.service.restart("a", force=True), Invalid, needs)
    assert bench.vm().state is VmState.RUNNING


def test_a_machine_whose_registered_files_are_gone_is_not_stopped_by_a_restart(bench: Bench, tmp_path: Path) -> None:
    image = make_image(bench.paths, "other", "")
    part = msgspec.structs.replace(image.parts["root"], file=str(tmp_path / "gone"), modified_ns=1)
    metadata = bench.paths.image("other").metadata
    metadata.chmod(0o600)
    metadata.write_bytes(
        msgspec.json.encode(msgspec.structs.replace(image, managed=False, parts={**image.parts, "root": part}))
    )
    bench.change(image="other", state=VmState.RUNNING)
    bench.refused(lambda: bench.service.restart("a", force=True), Invalid, "gone is gone")
    assert bench.vm().state is VmState.RUNNING
