"""Which accelerator works here: proven by running a guest, never assumed from a device file.

A host may have /dev/kvm, open it and create VMs on it, and yet fail at the first instruction. So each accelerator
runs a 64 KiB firmware of ours, with the CPU model that VMs get, and counts only if that guest reports success.
"""

import contextlib
import json
import os
import re
import tempfile
from pathlib import Path
from typing import Any

from banger.model.errors import HostRequirement, Timeout
from banger.system.host import boot_id
from banger.system.process import find_program, run

QEMU = "qemu-system-x86_64"
PACKAGE = "qemu-system-x86"
CPU = {"kvm": "host", "tcg": "max"}
DEADLINE_S = 10.0
# isa-debug-exit turns a guest's write of V into the exit status 2 * V + 1; the guest below writes 0x10
SUCCESS = 0x10 << 1 | 1

# From the reset vector: real mode, protected mode, page tables for the first 2 MiB, long mode; cpuid, rdtsc, the sum
# of 1..1000000 kept in memory at every step; 0x10 to port 0xf4 if sum and memory agree, else hlt for ever.
#   cli; lgdtl cs:gdtr; cr0 |= PE; ljmpl 8:pm
#   pm: ds=es=ss=0x10; clear 0x1000..0x4000; pml4[0]=0x2003; pdpt[0]=0x3003; pd[0]=0x83; cr4 |= PAE; cr3=0x1000
#       efer |= LME; cr0 |= PG; ljmp 0x18:lm
#   lm: cpuid; rdtsc; rax=0; ecx=1000000; do { rax+=rcx; [0x8000+8*(ecx&0xfff)]=rax } while (--ecx)
#       if (rax==500000500000 && [0x8008]==rax) out 0xf4,0x10;  for (;;) hlt
_GUEST = bytes.fromhex(
    "fa2e660f0116f0000f20c00c010f22c066ea18000f00080066b810008ed88ec08ed0bf0010000031c0b9000c0000fcf3abc70500100000"
    "03200000c7050020000003300000c70500300000830000000f20e083c8200f22e0b8001000000f22d8b9800000c00f320d000100000f30"
    "0f20c00d000000800f22c0ea80000f001800b8100000008ed031c00fa20f3131c0b940420f004801c889ca81e2ff0f0000488904d50080"
    "0000ffc975e948bb20295a6a740000004839d8750e48391c25088000007504b010e6f4f4ebfd0f1f4400000000000000000000ffff0000"
    "009acf00ffff00000092cf00ffff0000009aaf001f00d0000f00"
)
_FIRMWARE_SIZE, _RESET = 0x10000, 0xFFF0


def firmware() -> bytes:
    """The whole ROM: the guest at its beginning, a near jump to it at the reset vector, hlt elsewhere."""
    jump = b"\xe9" + ((-(_RESET + 3)) & 0xFFFF).to_bytes(2, "little")
    rom = bytearray(_GUEST.ljust(_FIRMWARE_SIZE, b"\xf4"))
    rom[_RESET : _RESET + len(jump)] = jump
    return bytes(rom)


async def prove(cache: Path) -> dict[str, str]:
    """The verdict: `accelerator` (kvm or tcg), `reason` in words for a person, `qemu_version`, `boot_id`.

    Kept in the file `cache` for this boot and this QEMU. Raises `HostRequirement` when not even tcg runs a guest.
    """
    qemu = find_program(QEMU, package=PACKAGE)
    version = await _version(qemu)
    known = _read(cache)
    if known.get("qemu_version") == version and known.get("boot_id") == boot_id() and known.get("accelerator") in CPU:
        return known
    accelerator, reason = await _choose(qemu)
    verdict = {"accelerator": accelerator, "reason": reason, "qemu_version": version, "boot_id": boot_id()}
    _write(cache, verdict)
    return verdict


async def _choose(qemu: str) -> tuple[str, str]:
    problem = await _kvm_problem(qemu)
    if not problem:
        return "kvm", "KVM ran a test guest"
    failure = await _try(qemu, "tcg")
    if failure:
        raise HostRequirement(
            f"no accelerator works here: {problem}; emulation failed too: {failure}", hint=f"reinstall {PACKAGE}"
        )
    return "tcg", f"emulated: {problem}"


async def _kvm_problem(qemu: str) -> str:
    """Why KVM cannot be used; empty when it can."""
    device = Path("/dev/kvm")
    if not device.exists():
        return "there is no /dev/kvm"
    if not os.access(device, os.R_OK | os.W_OK):
        return "/dev/kvm may not be opened by this user"
    failure = await _try(qemu, "kvm")
    return f"KVM opens but cannot run a guest: {failure}" if failure else ""


async def _try(qemu: str, accelerator: str) -> str:
    """Run the test guest; empty on success, else what went wrong."""
    with tempfile.NamedTemporaryFile(prefix="banger-probe-") as rom:
        rom.write(firmware())
        rom.flush()
        argv = [qemu, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-M", "q35", "-m", "16"]
        argv += ["-accel", accelerator, "-cpu", CPU[accelerator], "-bios", rom.name]
        argv += ["-device", "isa-debug-exit,iobase=0xf4,iosize=0x04"]
        try:
            done = await run(argv, timeout=DEADLINE_S, check=False)
        except Timeout:
            return f"the test guest did not end within {DEADLINE_S:g} s"
    if done.status == SUCCESS:
        return ""
    lines = done.stderr.decode(errors="replace").strip().splitlines()
    said = next((line for line in lines if "error" in line), lines[0] if lines else f"QEMU's status was {done.status}")
    return said.rsplit("error: ", 1)[-1][:200]


async def _version(qemu: str) -> str:
    done = await run([qemu, "--version"], timeout=DEADLINE_S)
    found = re.search(rb"version (\S+)", done.stdout)
    return found[1].decode() if found else "unknown"


def _read(cache: Path) -> dict[str, str]:
    """A verdict that was kept; empty for none, or for one that is not as we write it."""
    try:
        known: Any = json.loads(cache.read_bytes())
    except (OSError, ValueError):
        return {}
    sound = isinstance(known, dict) and all(isinstance(value, str) for value in known.values())
    return known if sound else {}


def _write(cache: Path, verdict: dict[str, str]) -> None:
    """Atomically; a cache that cannot be written only costs time."""
    with contextlib.suppress(OSError):
        cache.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.NamedTemporaryFile("w", dir=cache.parent, prefix=".accelerators-", delete=False) as fresh:
            json.dump(verdict, fresh)
        Path(fresh.name).replace(cache)
