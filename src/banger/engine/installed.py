"""The engines on this host: banger-vmm, the installed releases of Firecracker, and one on PATH; usable or why not."""

import asyncio
import re
import shutil
from pathlib import Path

from banger import __version__
from banger.engine.capabilities import firecracker_capabilities, new_enough, oldest, parse_version, qemu_capabilities
from banger.engine.install import installed, read_record, verify
from banger.engine.select import Accelerator, vmm_program
from banger.model.engine import EngineInfo
from banger.model.errors import BangerError, Invalid
from banger.paths import EnginePaths, Paths
from banger.system.process import environment, run

VERSION_S = 5.0
_SAID = re.compile(rb"Firecracker (v\S{1,60})\s*")


async def find_engines(paths: Paths, accelerator: Accelerator, *, check_digests: bool = False) -> list[EngineInfo]:
    """Every engine, the usable ones first, Firecracker before banger-vmm, the newest release first.

    An engine that cannot be used is listed with the reason. `check_digests` reads every installed program.
    """
    asked = [_installed(where, accelerator, check_digests) for where in installed(paths)]
    if (found := _on_path(paths)) is not None:
        asked.append(_found(found, accelerator))
    engines = [_bundled(accelerator), *await asyncio.gather(*asked)]
    return sorted(engines, key=_rank)


def _rank(engine: EngineInfo) -> tuple[bool, bool, list[int], bool]:
    try:
        version = [-number for number in parse_version(engine.version)]
    except Invalid:
        version = [0]
    return not engine.usable, engine.name != "firecracker", version, engine.origin != "installed"


def _bundled(accelerator: Accelerator) -> EngineInfo:
    usable = accelerator.accelerator in ("kvm", "tcg")
    return EngineInfo(
        name="qemu",
        version=__version__,
        program=vmm_program(),
        jailer=None,
        origin="bundled",
        capabilities=qemu_capabilities(__version__),
        usable=usable,
        reason=f"{accelerator.accelerator}: {accelerator.reason}" if usable else accelerator.reason,
    )


async def _installed(where: EnginePaths, accelerator: Accelerator, check_digests: bool) -> EngineInfo:
    version = where.directory.name
    try:
        read_record(where)
        if check_digests:
            await verify(where)
        said = await _version(where.firecracker)
        if said != version:
            raise Invalid(f"it is in the directory of {version} and says that it is {said}")
    except BangerError as error:
        return _firecracker(where.firecracker, version, where.jailer, "installed", error.message, accelerator)
    return _firecracker(where.firecracker, version, where.jailer, "installed", "", accelerator)


async def _found(program: Path, accelerator: Accelerator) -> EngineInfo:
    beside = program.with_name("jailer")
    jailer = beside if beside.is_file() else None
    try:
        version, problem = await _version(program), ""
    except BangerError as error:
        version, problem = "unknown", error.message
    return _firecracker(program, version, jailer, "path", problem, accelerator)


def _on_path(paths: Paths) -> Path | None:
    """The firecracker that a shell would start, unless it is one of those that banger installed."""
    found = shutil.which("firecracker", path=environment()["PATH"])
    if found is None:
        return None
    program = Path(found).absolute()
    return None if program.resolve().is_relative_to(paths.engines.resolve()) else program


async def _version(program: Path) -> str:
    """The release that the program says it is. Raises what says why it does not."""
    try:
        done = await run([str(program), "--version"], timeout=VERSION_S)
    except OSError as error:
        raise Invalid(f"{program} cannot be run: {error.strerror}") from error
    match = _SAID.fullmatch(done.stdout.partition(b"\n")[0])
    if match is None:
        raise Invalid(f"{program} --version does not say `Firecracker v...` on its first line")
    version = match[1].decode("ascii", "replace").removeprefix("v")
    parse_version(version)
    return version


def _firecracker(
    program: Path, version: str, jailer: Path | None, origin: str, problem: str, accelerator: Accelerator
) -> EngineInfo:
    usable, reason = _verdict(version, problem, accelerator)
    return EngineInfo(
        name="firecracker",
        version=version,
        program=(str(program),),
        jailer=str(jailer) if jailer is not None and jailer.is_file() else None,
        origin="installed" if origin == "installed" else "path",
        capabilities=firecracker_capabilities(version if _is_version(version) else "0.0.0"),
        usable=usable,
        reason=reason,
    )


def _is_version(text: str) -> bool:
    try:
        parse_version(text)
    except Invalid:
        return False
    return True


def _verdict(version: str, problem: str, accelerator: Accelerator) -> tuple[bool, str]:
    if problem:
        return False, problem
    if not new_enough(version):
        return False, f"it is not new enough: banger needs {oldest()}, whose guests find their devices by ACPI"
    if accelerator.accelerator != "kvm":
        return False, f"it needs KVM, which is not proven here: {accelerator.reason}"
    return True, f"kvm: {accelerator.reason}"
