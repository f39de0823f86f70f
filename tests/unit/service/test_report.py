"""A report holds what helps, and no secret; it can be written of a VM that is gone."""

import asyncio
import contextlib
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from banger.config import Settings
from banger.engine.select import Accelerator
from banger.jobs.operations import Job, Operations
from banger.model.documents import VmDocument
from banger.model.errors import GuestUnreachable, HostRequirement, Invalid, NotFound
from banger.model.vm import Report, Vm, VmState
from banger.service.engines import EngineService
from banger.service.health import Checks, Monitor
from banger.service.opencode import Opencode
from banger.service.report import Reporter
from banger.store.db import open_database
from banger.store.operations import OperationStore
from banger.store.vms import VmStore
from banger.system.process import find_program
from tests.unit.service.pretend import VM_ID, paths_in, running_vm


class Bench:
    """A reporter over real stores; no engine runs."""

    def __init__(self, directory: Path, vms: VmStore, operations: Operations) -> None:
        self.paths, self.vms, self.operations = paths_in(directory), vms, operations
        self.opencode = Opencode(self.paths, Settings())
        monitor = Monitor(Checks(self.paths, self.opencode), 60, vms.get, lambda *_: None)
        engines = EngineService(self.paths, operations, _no_accelerator, dict)
        self.reporter = Reporter(self.paths, Settings(), vms, operations, monitor, engines, _document)

    def write(self, name: str) -> tuple[Report, dict[str, str]]:
        report = asyncio.run(self.reporter.write(name))
        with tarfile.open(report.path) as archive:
            texts = {}
            for entry in archive:
                file = archive.extractfile(entry)
                assert file is not None
                texts[entry.name.split("/", 1)[1]] = file.read().decode()
        return report, texts

    def fail(self, name: str) -> None:
        """An operation on a VM of that name, ended by an error with a console."""

        async def work(job: Job) -> None:
            async with job.stage("boot to healthy"):
                raise GuestUnreachable("it did not answer", details={"console": ["Kernel panic"]})

        async def main() -> None:
            await self.operations.wait(self.operations.begin("vm.create", f"vm/{name}", work).id)

        asyncio.run(main())


async def _no_accelerator() -> Accelerator:
    raise Invalid("none here")


def _document(vm: Vm) -> VmDocument:
    return {"id": vm.id, "name": vm.name}  # type: ignore[typeddict-item]


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with contextlib.closing(open_database(tmp_path / "db")) as database:
        yield Bench(tmp_path, VmStore(database), Operations(OperationStore(database)))


def test_a_report_of_a_vm_has_record_checks_logs_and_operations(bench: Bench) -> None:
    vm = running_vm(state=VmState.STOPPED, opencode=True, problem="the guest powered off")
    bench.vms.add(vm)
    folder = bench.paths.vm(VM_ID)
    folder.state.mkdir(parents=True)
    folder.console_log.write_text("the guest's last words\n")
    folder.engine_log.write_text("the engine's\n")
    secret = bench.opencode.access(vm).password
    bench.fail("a")
    report, texts = bench.write("a")
    assert texts["console.log"] == "the guest's last words\n"
    assert texts["engine.log"] == "the engine's\n"
    assert json.loads(texts["vm.json"])["id"] == VM_ID
    assert json.loads(texts["health.json"])["status"] == "stopped"
    (operation,) = json.loads(texts["operations.json"])
    stages = [event["data"].get("stage") for event in json.loads(texts["events.json"])[operation["id"]]]
    assert stages[:2] == ["boot to healthy", "boot to healthy"]
    assert {"links.json", "nat.json", "leases.json", "sockets.json", "versions.json"} <= set(texts)
    assert report.look == "health.json, engine: the guest powered off"
    assert Path(report.path).stat().st_mode & 0o777 == 0o600
    assert not [name for name, text in texts.items() if secret in text]


def test_a_vm_that_is_gone_is_told_from_its_operations(bench: Bench) -> None:
    bench.fail("gone")
    report, texts = bench.write("gone")
    assert "Kernel panic" in texts["operations.json"]
    assert report.look == "operations.json, vm.create: it did not answer"
    assert "vm.json" not in texts


def test_a_name_that_nobody_has_heard_of_is_not_found(bench: Bench) -> None:
    with pytest.raises(NotFound, match="nobody"):
        asyncio.run(bench.reporter.write("nobody"))
    with pytest.raises(Invalid):
        asyncio.run(bench.reporter.write("../etc"))


def test_a_host_without_the_programs_gets_a_report_all_the_same(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    find_program("ip", package="iproute2")
    bench.fail("a")
    monkeypatch.setenv("PATH", str(tmp_path))
    _, texts = bench.write("a")
    assert texts["links.json"] == "ip is not installed\n"
    assert texts["nat.json"] == "nft is not installed\n"


def test_a_report_that_the_state_directory_cannot_take_is_put_elsewhere(bench: Bench) -> None:
    bench.fail("a")
    bench.paths.state.mkdir(exist_ok=True)
    bench.paths.reports.write_text("no directory")
    report, texts = bench.write("a")
    assert Path(report.path).parent == bench.paths.runtime / "reports"
    assert "operations.json" in texts
    (bench.paths.runtime / "reports" / Path(report.path).name).unlink()
    (bench.paths.runtime / "reports").rmdir()
    (bench.paths.runtime / "reports").write_text("none either")
    with pytest.raises(HostRequirement, match="cannot be written"):
        bench.write("a")
