"""Which engine runs a VM, on which accelerator, and why."""

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import msgspec

from banger.model.engine import Capabilities, EngineInfo
from banger.model.errors import CommandFailed, HostRequirement, Unsupported
from banger.model.vm import WantedEngine
from banger.system.process import run

PROBE_TIMEOUT_S = 30.0


class Accelerator(msgspec.Struct, frozen=True):
    """What `banger-vmm --probe-accelerator` found: `kvm` or `tcg`, and the reason in words for a person."""

    accelerator: str
    reason: str
    qemu_version: str


class Needs(NamedTuple):
    """What a VM asks of its engine: the internet without privilege, and a root disk that is a qcow2 already."""

    nat: bool
    qcow2: bool


class Engine(msgspec.Struct, frozen=True, kw_only=True):
    """The engine that a VM gets: what starts it, what it can do, its accelerator, and why this one."""

    name: str
    version: str
    program: tuple[str, ...]
    jailer: str | None
    capabilities: Capabilities
    accelerator: Accelerator
    reason: str


def vmm_program() -> tuple[str, ...]:
    """The `banger-vmm` beside this interpreter."""
    script = Path(sys.executable).parent / "banger-vmm"
    return (str(script),) if script.exists() else (sys.executable, "-m", "banger.qemu.entry")


async def prove_accelerator() -> Accelerator:
    """The accelerator that works here, proven by a guest. Raises `CommandFailed`, `HostRequirement`."""
    done = await run([*vmm_program(), "--probe-accelerator"], timeout=PROBE_TIMEOUT_S)
    try:
        return msgspec.json.decode(done.stdout, type=Accelerator)
    except msgspec.DecodeError as error:
        raise CommandFailed(f"banger-vmm --probe-accelerator printed nonsense: {error}") from error


def choose(engines: Iterable[EngineInfo], accelerator: Accelerator, wanted: WantedEngine, needs: Needs) -> Engine:
    """The engine for a VM, of those that were found. Pure.

    `auto` is the newest usable Firecracker without a known fault, where it can do what the VM needs; else qemu, and
    the reason says what kept Firecracker from it. Raises `HostRequirement`, `Unsupported`.
    """
    known = list(engines)
    problem, lacking = "no firecracker is installed", ""
    for info in sorted((info for info in known if info.name == "firecracker"), key=_faults):
        lacking = _lacking(info.capabilities, needs)
        if info.usable and not lacking:
            why = "asked for" if wanted == "firecracker" else "KVM works, and firecracker is installed"
            if wanted != "qemu":
                return _engine(info, accelerator, why)
        problem = lacking if info.usable else f"firecracker {info.version} cannot be used: {info.reason}"
        break
    if wanted == "firecracker":
        raise _refusal(problem, lacking)
    bundled = next((info for info in known if info.name == "qemu" and info.usable), None)
    if bundled is None:
        raise HostRequirement(f"no engine works here: {accelerator.reason}", hint="`banger engine list` shows all")
    return _engine(bundled, accelerator, "asked for" if wanted == "qemu" else problem)


def _faults(info: EngineInfo) -> tuple[bool, bool]:
    """Usable and sound ones first; the newest of equals, as they were found in that order."""
    return not info.usable, info.capabilities.vsock_pause_hang


def _lacking(capabilities: Capabilities, needs: Needs) -> str:
    if needs.nat and not capabilities.user_network:
        return "firecracker has no network without privilege, which --nat needs"
    if needs.qcow2 and not capabilities.qcow2:
        return "the VM's root disk is a qcow2 overlay, which firecracker cannot read"
    return ""


def _refusal(problem: str, lacking: str) -> HostRequirement | Unsupported:
    if problem == lacking:
        return Unsupported(problem, hint="use --engine qemu, or auto")
    return HostRequirement(
        problem, hint="`banger engine install firecracker` installs one; --engine qemu runs anywhere"
    )


def _engine(info: EngineInfo, accelerator: Accelerator, reason: str) -> Engine:
    return Engine(
        name=info.name,
        version=info.version,
        program=info.program,
        jailer=info.jailer if info.capabilities.jailer else None,
        capabilities=info.capabilities,
        accelerator=accelerator,
        reason=reason,
    )
