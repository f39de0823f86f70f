"""Which engines are found, in which order, and why each is usable or not."""

import asyncio
import subprocess
import time
from pathlib import Path

import msgspec
import pytest

from banger.engine.install import install, make_plan
from banger.engine.installed import find_engines
from banger.engine.select import Accelerator
from banger.model.engine import EngineInfo, EngineInstallSpec
from banger.model.vm import EngineProcess
from banger.paths import Paths
from banger.service.engines import programs_in_use
from banger.system.host import boot_id, start_ticks
from tests.support.firecracker import program, put, sha256
from tests.unit.engine.test_install import Told
from tests.unit.test_store import make_vm

KVM = Accelerator("kvm", "a guest ran to its end", "7.2.15")
TCG = Accelerator("tcg", "emulated: /dev/kvm is missing", "7.2.15")
NONE = Accelerator("none", "the program qemu-system-x86_64 is not installed", "")


class Host:
    """A host without engines, until a test puts some on it."""

    def __init__(self, directory: Path) -> None:
        self.paths = Paths(directory / "s", directory / "r", directory / "c")
        self.bin = directory / "bin"
        self._directory = directory
        self.bin.mkdir()

    def install(self, version: str) -> Path:
        file = put(self._directory, version)
        spec = EngineInstallSpec(version=version, file=str(file), sha256=sha256(file.read_bytes()))
        asyncio.run(install(self.paths, make_plan(spec), Told()))
        return self.paths.engine("firecracker", version).firecracker

    def on_path(self, content: bytes) -> None:
        (self.bin / "firecracker").write_bytes(content)
        (self.bin / "firecracker").chmod(0o755)

    def engines(self, accelerator: Accelerator = KVM, *, check_digests: bool = False) -> list[EngineInfo]:
        return asyncio.run(find_engines(self.paths, accelerator, check_digests=check_digests))

    def firecracker(self, accelerator: Accelerator = KVM, *, check_digests: bool = False) -> EngineInfo:
        (found,) = (e for e in self.engines(accelerator, check_digests=check_digests) if e.name == "firecracker")
        return found


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    made = Host(tmp_path)
    monkeypatch.setenv("PATH", str(made.bin))
    monkeypatch.setattr("banger.system.process._PATH", "/usr/bin:/bin")
    return made


def test_banger_vmm_is_always_there(host: Host) -> None:
    (ours,) = host.engines(TCG)
    assert (ours.name, ours.origin, ours.usable, ours.jailer) == ("qemu", "bundled", True, None)
    assert "/dev/kvm is missing" in ours.reason
    (ours,) = host.engines(NONE)
    assert not ours.usable
    assert "not installed" in ours.reason


def test_the_newest_usable_firecracker_comes_first(host: Host) -> None:
    for version in ("1.9.9", "1.10.4", "1.8.2"):
        host.install(version)
    host.on_path(program("Firecracker v1.11.0"))
    told = [(engine.name, engine.version, engine.origin) for engine in host.engines()]
    assert told == [
        ("firecracker", "1.11.0", "path"),
        ("firecracker", "1.10.4", "installed"),
        ("firecracker", "1.9.9", "installed"),
        ("firecracker", "1.8.2", "installed"),
        ("qemu", told[-1][1], "bundled"),
    ]


def test_an_installed_one_brings_its_jailer_and_its_abilities(host: Host) -> None:
    program = host.install("1.9.9")
    found = host.firecracker()
    assert found.program == (str(program),)
    assert found.jailer == str(program.with_name("jailer"))
    assert found.usable
    assert found.capabilities.jailer
    assert not found.capabilities.user_network


def test_without_proven_kvm_no_firecracker_is_usable(host: Host) -> None:
    host.install("1.9.9")
    assert [(e.name, e.usable) for e in host.engines(TCG)] == [("qemu", True), ("firecracker", False)]
    assert "KVM" in host.firecracker(TCG).reason
    assert "/dev/kvm is missing" in host.firecracker(TCG).reason
    assert "not installed" in host.firecracker(NONE).reason


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"#!/bin/sh\necho Firecracker v1.7.0\n", "not new enough"),
        (b"#!/bin/sh\necho Hello\n", "does not say"),
        (b"#!/bin/sh\necho Firecracker vNext\n", "not a version"),
        (b"#!/bin/sh\necho out of order >&2; exit 3\n", "out of order"),
        (b"#!/bin/sh\nkill -SEGV $$\n", "SIGSEGV"),
        (b"\0\1\2\3 no program", "cannot be run"),
        (b"#!/nothing/there\n", "cannot"),
        (program("Firecracker v1.9.9", machine=183), "cannot be run"),
    ],
)
def test_a_firecracker_on_path_that_is_no_good_is_listed_with_the_reason(host: Host, content: bytes, said: str) -> None:
    host.on_path(content)
    found = host.firecracker()
    assert (found.origin, found.usable) == ("path", False)
    assert said in found.reason


def test_one_that_hangs_is_given_up(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("banger.engine.installed.VERSION_S", 0.3)
    host.on_path(program("Firecracker v1.9.9", stays=True))
    begun = time.monotonic()
    assert "did not finish" in host.firecracker().reason
    assert time.monotonic() - begun < 5


def test_a_build_of_ones_own_is_taken_for_what_it_is(host: Host) -> None:
    host.on_path(program("Firecracker v1.17.0-dev"))
    found = host.firecracker()
    assert (found.version, found.usable, found.capabilities.vsock_pause_hang) == ("1.17.0-dev", True, True)


def test_an_installed_one_that_is_on_path_is_listed_once(host: Host) -> None:
    (host.bin / "firecracker").symlink_to(host.install("1.9.9"))
    assert host.firecracker().origin == "installed"


def test_damage_is_told(host: Host) -> None:
    installed = host.install("1.9.9")
    (installed.parent / "engine.json").write_text("{")
    assert "engine.json cannot be used" in host.firecracker().reason
    (installed.parent / "engine.json").unlink()
    assert "engine.json cannot be used" in host.firecracker().reason
    installed.unlink()
    assert not host.firecracker().usable


def test_a_changed_program_is_found_when_digests_are_checked(host: Host) -> None:
    installed = host.install("1.9.9")
    assert host.firecracker(check_digests=True).usable
    installed.write_bytes(installed.read_bytes() + b"\0")
    assert host.firecracker().usable
    found = host.firecracker(check_digests=True)
    assert not found.usable
    assert "the content of firecracker has changed" in found.reason


def test_another_version_in_the_place_of_an_installed_one_is_found(host: Host) -> None:
    host.install("1.9.9").write_bytes(program("Firecracker v1.9.8"))
    assert "says that it is 1.9.8" in host.firecracker().reason


def test_the_programs_of_running_vms_are_known(host: Host) -> None:
    path = host.install("1.9.9")
    path.write_bytes(program("Firecracker v1.9.9", stays=True))
    running = subprocess.Popen([path, "--api-sock", "/nowhere"], stdout=subprocess.DEVNULL)
    try:
        process = EngineProcess(pid=running.pid, start_ticks=start_ticks(running.pid) or 0, boot_id=boot_id())
        demo = msgspec.structs.replace(make_vm("demo", "0123456789ab"), process=process)
        idle = msgspec.structs.replace(demo, name="idle", process=None)
        recycled = msgspec.structs.replace(demo, process=msgspec.structs.replace(process, start_ticks=1))
        vms = [demo, idle]
        assert programs_in_use(vms) == {str(path): "demo"}
        assert programs_in_use([recycled]) == {}
    finally:
        running.kill()
        running.wait()
    assert programs_in_use(vms) == {}
