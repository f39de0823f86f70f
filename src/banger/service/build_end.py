"""How a build ends in its guest: with modules for its kernel, services as this banger has them, and a trimmed disk."""

import hashlib
import shlex
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath
from typing import Literal

from banger.guest import bundle
from banger.guest.copies import write_files
from banger.service.build_log import BuildLog
from banger.service.build_steps import Bench, Step, take

_OURS = "banger"  # what else a seed holds, such as hosts and masked units, is the recipe's to change
_INITS: dict[str, Literal["systemd", "openrc", "runit"]] = {
    "systemd": "systemd", "openrc": "openrc", "runit": "runit"
}  # fmt: skip
_RELEASE = 'release=$(uname -r); echo "$release"; test -d "/lib/modules/$release"'
_TRIM = "sync; fstrim -v / || echo 'the disk cannot be trimmed'"


async def put_in_order(bench: Bench, log: BuildLog, agent: Mapping[str, bytes]) -> None:
    """The last stages before the guest powers off; `agent` is as `RuntimeBundle.agent` has it. Raises like a step."""
    await take(Step("modules", "kernel modules", "", _modules), bench, log)
    if bench.init in _INITS:
        await take(Step("services", "services", "", lambda bench: _services(bench, agent)), bench, log)
    await take(Step("trim", "trim", "", lambda bench: bench.run(_TRIM)), bench, log)


async def _modules(bench: Bench) -> None:
    said: list[str] = []
    if await bench.status(_RELEASE, heard=said.append) != 0:
        place = f"/lib/modules/{said[0] if said else 'RELEASE'}"
        bench.job.note(f"there is no {place}: only what the kernel has built in works; --copy SRC:{place} brings them")


async def _services(bench: Bench, agent: Mapping[str, bytes]) -> None:
    """Replace what differs. What an older banger had besides stays, and nothing starts it."""
    files, links = ours(_INITS[bench.init], agent)
    have = await _present(bench, files, links)
    stale = {path: found for path, found in files.items() if have.get(path) != hashlib.sha256(found[0]).hexdigest()}
    missing = {path: target for path, target in links.items() if have.get(path) != target}
    if not stale and not missing:
        return
    bench.job.note(f"brought up to date: {', '.join(sorted(stale.keys() | missing.keys()))}")
    await bench.unpack("/", lambda out: write_files(stale, missing, out))
    if any(path.endswith(".py") for path in stale):
        places = shlex.join(f"/{path}" for path in bundle.COMPILE)
        await bench.run(f"python3 -m compileall -q --invalidation-mode timestamp {places}")


async def _present(bench: Bench, files: Iterable[str], links: Iterable[str]) -> dict[str, str]:
    """By path: a file's SHA-256 in hex, or a link's target. What is not there is left out."""
    found: dict[str, str] = {}

    def heard(line: str) -> None:
        value, _, path = line.partition("  ")
        found[path] = value

    inspect = f"cd / && sha256sum -- {shlex.join(files)} 2>/dev/null; "
    inspect += f'for link in {shlex.join(links)}; do echo "$(readlink "$link")  $link"; done; true'
    await bench.status(inspect, heard=heard)
    return found


def ours(
    init: Literal["systemd", "openrc", "runit"], agent: Mapping[str, bytes]
) -> tuple[dict[str, tuple[bytes, int]], dict[str, str]]:
    """What a guest has that is banger's alone: files with their modes, and links; paths without the first slash."""
    replaced = {f"{bundle.LIBRARY}/{name}" for name in bundle.agent_tree()}
    files = {
        path: found
        for path, found in bundle.agent_files(init).items()
        if path not in replaced and _is_ours(path)
    }  # fmt: skip
    files |= {f"{bundle.LIBRARY}/{name}": (content, 0o644) for name, content in agent.items()}
    return files, {path: target for path, target in bundle.links(init).items() if _is_ours(path)}


def _is_ours(path: str) -> bool:
    return any(part.startswith(_OURS) for part in PurePosixPath(path).parts)
