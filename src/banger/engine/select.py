"""Which engine runs a VM, on which accelerator, and why."""

import sys
from pathlib import Path

import msgspec

from banger.model.errors import CommandFailed
from banger.system.process import run

PROBE_TIMEOUT_S = 30.0


class Accelerator(msgspec.Struct, frozen=True):
    """What `banger-vmm --probe-accelerator` found: `kvm` or `tcg`, and the reason in words for a person."""

    accelerator: str
    reason: str
    qemu_version: str


class Engine(msgspec.Struct, frozen=True):
    """An engine's name, the command that starts it, and its accelerator."""

    name: str
    program: tuple[str, ...]
    accelerator: Accelerator


def vmm_program() -> tuple[str, ...]:
    """The `banger-vmm` beside this interpreter."""
    script = Path(sys.executable).parent / "banger-vmm"
    return (str(script),) if script.exists() else (sys.executable, "-m", "banger.qemu.entry")


async def select_engine() -> Engine:
    """The engine for a new VM: `qemu`, on a proven accelerator. Raises `CommandFailed`, `HostRequirement`."""
    program = vmm_program()
    done = await run([*program, "--probe-accelerator"], timeout=PROBE_TIMEOUT_S)
    try:
        accelerator = msgspec.json.decode(done.stdout, type=Accelerator)
    except msgspec.DecodeError as error:
        raise CommandFailed(f"banger-vmm --probe-accelerator printed nonsense: {error}") from error
    return Engine("qemu", program, accelerator)
