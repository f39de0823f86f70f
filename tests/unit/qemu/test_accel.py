"""The accelerator is proven by a guest that ran, and the proof is kept for this boot and this QEMU."""

import asyncio
import json
import os
import shutil
from pathlib import Path

import pytest

from banger.model.errors import HostRequirement
from banger.qemu import accel
from banger.system.host import boot_id

FAKE = """#!/bin/sh
case "$*" in
*--version*) echo "QEMU emulator version {version}"; exit 0 ;;
esac
echo run >> "{count}"
case "$*" in
*"-accel kvm"*) echo "qemu-system-x86_64: error: {kvm_says}" >&2; exit {kvm} ;;
*) exit {tcg} ;;
esac
"""


class Fake:
    """A qemu-system-x86_64 first on PATH that pretends."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.directory = directory
        self.cache = directory / "cache" / "accelerators.json"
        monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")

    def behaves(self, *, kvm: int = 134, tcg: int = 33, version: str = "7.2.22", kvm_says: str = "no luck") -> None:
        script = self.directory / accel.QEMU
        count = self.directory / "runs"
        script.write_text(FAKE.format(count=count, kvm=kvm, tcg=tcg, version=version, kvm_says=kvm_says))
        script.chmod(0o755)

    def runs(self) -> int:
        count = self.directory / "runs"
        return count.read_text().count("run") if count.exists() else 0

    def prove(self) -> dict[str, str]:
        return asyncio.run(accel.prove(self.cache))


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    made = Fake(tmp_path, monkeypatch)
    made.behaves()
    return made


def test_a_kvm_that_opens_but_cannot_run_a_guest_is_not_used(fake: Fake) -> None:
    verdict = fake.prove()
    assert verdict["accelerator"] == "tcg"
    assert "KVM opens but cannot run a guest: no luck" in verdict["reason"]


def test_a_kvm_that_runs_the_guest_is_used(fake: Fake) -> None:
    fake.behaves(kvm=33)
    assert fake.prove()["accelerator"] == "kvm"


def test_an_exit_status_of_nought_is_no_proof(fake: Fake) -> None:
    fake.behaves(kvm=0)
    assert fake.prove()["accelerator"] == "tcg"


def test_the_verdict_is_kept_until_qemu_or_the_boot_changes(fake: Fake) -> None:
    first = fake.prove()
    runs = fake.runs()
    assert runs > 0
    assert fake.prove() == first
    assert fake.runs() == runs
    fake.behaves(version="9.0.0")
    assert fake.prove()["qemu_version"] == "9.0.0"
    assert fake.runs() > runs
    runs = fake.runs()
    fake.cache.write_text(json.dumps(fake.prove() | {"boot_id": "another"}))
    assert fake.prove()["boot_id"] == boot_id()
    assert fake.runs() > runs


@pytest.mark.parametrize("content", ["", "{", "[]", '{"accelerator": 3}', '{"accelerator": "warp"}', "\x00"])
def test_a_corrupt_cache_is_made_anew(fake: Fake, content: str) -> None:
    fake.cache.parent.mkdir()
    fake.cache.write_text(content)
    assert fake.prove()["accelerator"] in ("kvm", "tcg")
    assert json.loads(fake.cache.read_text())["boot_id"] == boot_id()


def test_a_host_where_nothing_works_is_told_so(fake: Fake) -> None:
    fake.behaves(tcg=1)
    with pytest.raises(HostRequirement, match="emulation failed too"):
        fake.prove()


@pytest.mark.skipif(shutil.which(accel.QEMU) is None, reason="qemu-system-x86_64 is not installed")
def test_the_real_qemu_runs_the_real_guest(tmp_path: Path) -> None:
    verdict = asyncio.run(accel.prove(tmp_path / "cache.json"))
    assert verdict["accelerator"] in ("kvm", "tcg")


@pytest.mark.skipif(shutil.which(accel.QEMU) is None, reason="qemu-system-x86_64 is not installed")
def test_the_guest_is_what_makes_the_proof(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With one byte of the expected sum changed, the same QEMU proves nothing."""
    wrong = accel._GUEST.replace((500000500000).to_bytes(8, "little"), (500000500001).to_bytes(8, "little"))
    assert wrong != accel._GUEST
    monkeypatch.setattr(accel, "_GUEST", wrong)
    monkeypatch.setattr(accel, "DEADLINE_S", 2.0)
    with pytest.raises(HostRequirement):
        asyncio.run(accel.prove(tmp_path / "cache.json"))
