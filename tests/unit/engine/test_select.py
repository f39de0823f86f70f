"""Which engine a VM gets, and what is said of the choice."""

import pytest

from banger.engine.capabilities import firecracker_capabilities, qemu_capabilities
from banger.engine.select import Accelerator, Needs, choose
from banger.model.engine import EngineInfo
from banger.model.errors import HostRequirement, Unsupported
from banger.model.vm import WantedEngine

KVM = Accelerator("kvm", "KVM ran a test guest", "7.2.22")
QEMU = EngineInfo(
    name="qemu",
    version="0.1.0",
    program=("banger-vmm",),
    jailer=None,
    origin="bundled",
    capabilities=qemu_capabilities("0.1.0"),
    usable=True,
    reason="kvm",
)
PLAIN = Needs(nat=False, qcow2=False)


def firecracker(version: str, *, usable: bool = True, reason: str = "kvm") -> EngineInfo:
    return EngineInfo(
        name="firecracker",
        version=version,
        program=(f"/e/{version}/firecracker",),
        jailer=f"/e/{version}/jailer",
        origin="installed",
        capabilities=firecracker_capabilities(version),
        usable=usable,
        reason=reason,
    )


@pytest.mark.parametrize(
    ("found", "wanted", "needs", "name", "version", "said"),
    [
        ([], "auto", PLAIN, "qemu", "0.1.0", "no firecracker is installed"),
        ([firecracker("1.15.1")], "auto", PLAIN, "firecracker", "1.15.1", "KVM works, and firecracker is installed"),
        ([firecracker("1.15.1")], "qemu", PLAIN, "qemu", "0.1.0", "asked for"),
        ([firecracker("1.15.1")], "firecracker", PLAIN, "firecracker", "1.15.1", "asked for"),
        ([firecracker("1.15.1")], "auto", Needs(nat=True, qcow2=False), "qemu", "0.1.0", "which --nat needs"),
        ([firecracker("1.15.1")], "auto", Needs(nat=False, qcow2=True), "qemu", "0.1.0", "is a qcow2 overlay"),
        (
            [firecracker("1.15.1", usable=False, reason="it needs KVM, which is not proven here: no")],
            *("auto", PLAIN, "qemu", "0.1.0", "firecracker 1.15.1 cannot be used: it needs KVM"),
        ),
        ([firecracker("1.16.1"), firecracker("1.15.1")], "auto", PLAIN, "firecracker", "1.15.1", "KVM works"),
        ([firecracker("1.16.1")], "auto", PLAIN, "firecracker", "1.16.1", "KVM works"),
        (
            [firecracker("1.15.1"), firecracker("1.8.0")],
            *("auto", PLAIN, "firecracker", "1.15.1", "KVM works"),
        ),
        (
            [firecracker("1.15.1", usable=False, reason="damaged"), firecracker("1.10.1")],
            *("auto", PLAIN, "firecracker", "1.10.1", "KVM works"),
        ),
    ],
)
def test_the_choice_and_its_reason(
    found: list[EngineInfo], wanted: WantedEngine, needs: Needs, name: str, version: str, said: str
) -> None:
    engine = choose([*found, QEMU], KVM, wanted, needs)
    assert (engine.name, engine.version) == (name, version)
    assert said in engine.reason
    assert (engine.jailer is not None) == (name == "firecracker")


@pytest.mark.parametrize(
    ("found", "needs", "kind", "said"),
    [
        ([], PLAIN, HostRequirement, "no firecracker is installed"),
        ([firecracker("1.7.0", usable=False, reason="it is not new enough")], PLAIN, HostRequirement, "not new enough"),
        ([firecracker("1.15.1")], Needs(nat=True, qcow2=False), Unsupported, "no network without privilege"),
        ([firecracker("1.15.1")], Needs(nat=False, qcow2=True), Unsupported, "qcow2"),
    ],
)
def test_firecracker_that_cannot_be_had_is_refused_with_a_way_out(
    found: list[EngineInfo], needs: Needs, kind: type[Exception], said: str
) -> None:
    with pytest.raises(kind, match=said) as caught:
        choose([*found, QEMU], KVM, "firecracker", needs)
    assert "--engine qemu" in caught.value.hint  # type: ignore[attr-defined]


def test_without_any_engine_the_reason_is_the_accelerators() -> None:
    with pytest.raises(HostRequirement, match="no QEMU"):
        choose([], Accelerator("none", "no QEMU", ""), "auto", PLAIN)
