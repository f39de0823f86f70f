"""What banger-vmm itself costs: start, memory, end, idling, and which imports the start is spent on."""

import os
import re
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support.engine import VMM, Engine
from tests.support.home import BIN

STARTS, ENDS = 9, 5
SETTLE_S, COUNT_S = 25, 30
IMPORTS = 15
_LINE = re.compile(r"import time:\s+(\d+) \|\s+(\d+) \|\s*(\S+)")
# Of modules that are, or may be, among the slowest: what they are needed for
WHY = {
    "argparse": "the command line's options",
    "_ast": "inspect needs it, by ast",
    "ast": "inspect needs it",
    "asyncio.base_events": "the event loop",
    "asyncio.events": "the event loop's interface",
    "asyncio.unix_events": "Unix sockets and child processes in the event loop",
    "banger": "our package: its version",
    "banger.model.firecracker": "the API's documents: one msgspec struct each",
    "banger.paths": "where the accelerator's verdict is kept",
    "banger.qemu.api": "the API's requests",
    "banger.qemu.argv": "QEMU's command line",
    "banger.qemu.disks": "drives: files, formats, limits",
    "banger.qemu.live": "changes to a running machine",
    "banger.qemu.main": "the process itself",
    "banger.qemu.metrics": "/metrics",
    "banger.qemu.serial": "the guest's console",
    "banger.qemu.server": "HTTP on the socket",
    "banger.qemu.vmm": "QEMU and what hangs on it",
    "banger.system.process": "starting QEMU",
    "collections": "most of the standard library",
    "dataclasses": "h11's events, results of child processes",
    "datetime": "msgspec knows it as a type",
    "decimal": "msgspec knows it as a type",
    "dis": "inspect needs it",
    "enum": "regular expressions, signals, sockets",
    "h11._connection": "the states of an HTTP connection",
    "h11._events": "requests and replies of HTTP: dataclasses, made at import",
    "h11._readers": "the grammar of HTTP, compiled at import",
    "inspect": "asyncio and the QMP client look at functions",
    "ipaddress": "urllib.parse needs it",
    "locale": "subprocess needs it",
    "logging": "the log",
    "msgspec": "JSON to and from checked types",
    "pathlib": "paths",
    "platform": "uuid needs it",
    "qemu.qmp.protocol": "QMP: the connection",
    "qemu.qmp.qmp_client": "QMP: commands and events",
    "re._compiler": "regular expressions",
    "re._constants": "regular expressions",
    "re._parser": "regular expressions",
    "selectors": "the event loop waits by it",
    "site": "the interpreter's start",
    "socket": "the API, QMP, console and vsock",
    "subprocess": "asyncio starts QEMU by it",
    "textwrap": "traceback needs it",
    "threading": "logging's locks",
    "tokenize": "traceback needs it, to show source lines",
    "traceback": "logging needs it",
    "typing": "NamedTuple, and the types that msgspec reads",
    "typing_extensions": "msgspec uses it where it is installed",
    "urllib.parse": "pathlib needs it",
    "uuid": "msgspec knows it as a type",
}


@contextmanager
def compiled() -> Iterator[None]:
    """Modules are compiled once, as after an installation, whatever the environment says."""
    before = dict(os.environ)
    with tempfile.TemporaryDirectory(prefix="bb-") as directory:
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        os.environ["PYTHONPYCACHEPREFIX"] = directory
        try:
            yield
        finally:
            os.environ.clear()
            os.environ.update(before)


@contextmanager
def _engine(images: Path) -> Iterator[Engine]:
    made = Engine(images)
    try:
        yield made
    finally:
        made.close()


def _seconds(command: list[str]) -> float:
    begun = time.perf_counter()
    subprocess.run(command, check=True)
    return time.perf_counter() - begun


def _first_answer(images: Path) -> float:
    """Seconds from before the fork to the answer of GET /."""
    with _engine(images) as engine:
        begun = time.perf_counter()
        with engine.log.open("wb") as log:
            command = [VMM, "--api-sock", str(engine.api)]
            engine.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        while True:
            try:
                engine.ask("GET", "/")
                return time.perf_counter() - begun
            except (FileNotFoundError, ConnectionRefusedError):
                time.sleep(0.0005)


def _ending(images: Path) -> float:
    """Seconds from QEMU's SIGKILL to the engine's own end."""
    with _engine(images) as engine:
        engine.launch()
        engine.configure()
        engine.start()
        time.sleep(1)
        assert engine.process is not None
        begun = time.perf_counter()
        engine.qemu().kill()
        engine.process.wait()
        return time.perf_counter() - begun


def pss_mib(pid: int) -> float:
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return int(rollup.split("Pss:")[1].split()[0]) / 1024


def ticks(pid: int) -> int:
    """utime and stime, of all threads (proc(5))."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def _idling(images: Path) -> dict[str, float]:
    """Memory of the engine beside an idle guest, and processor time while the guest is idle, then paused."""
    found: dict[str, float] = {}
    with _engine(images) as engine:
        engine.launch()
        engine.configure()
        engine.start()
        engine.until_healthy()
        time.sleep(SETTLE_S)  # the guest's own start-up work has ended
        assert engine.process is not None
        pids = {"engine": engine.process.pid, "qemu": engine.qemu().pid}
        found["pss_mib"] = pss_mib(pids["engine"])
        for state in ("idle", "paused"):
            if state == "paused":
                engine.must("PATCH", "/vm", {"state": "Paused"})
                time.sleep(1)
            before = {name: ticks(pid) for name, pid in pids.items()}
            time.sleep(COUNT_S)
            found |= {f"{state}_ticks_{name}": ticks(pid) - before[name] for name, pid in pids.items()}
        found["pss_after_mib"] = pss_mib(pids["engine"])
    return found


def _imports() -> dict[str, dict[str, float]]:
    """Milliseconds of each import until the API answers, medians: in the module itself, and with what it imports."""
    own: dict[str, list[float]] = {}
    whole: dict[str, list[float]] = {}
    for _ in range(STARTS):
        with tempfile.TemporaryDirectory(prefix="bb-") as directory:
            api, told = Path(directory, "api.sock"), Path(directory, "imports")
            with told.open("wb") as log:
                command = [str(BIN / "python"), "-X", "importtime", VMM, "--api-sock", str(api)]
                process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            while not api.exists():
                time.sleep(0.01)
            process.terminate()
            process.wait()
            for mine, all_of_it, name in _LINE.findall(told.read_text()):
                own.setdefault(name, []).append(int(mine) / 1000)
                whole.setdefault(name, []).append(int(all_of_it) / 1000)
    return {
        name: {"own_ms": statistics.median(values), "whole_ms": statistics.median(whole[name])}
        for name, values in own.items()
    }


def measure(images: Path) -> dict[str, Any]:
    """Everything; `images` holds the image `debian`."""
    _ending(images)  # compiles all that is ever imported
    bare = [str(BIN / "python"), "-c", "pass"]
    found: dict[str, Any] = {"bare_s": [], "first_answer_s": []}
    for _ in range(STARTS):
        found["bare_s"].append(_seconds(bare))
        found["first_answer_s"].append(_first_answer(images))
    found["end_s"] = [_ending(images) for _ in range(ENDS)]
    found["ticks_per_s"] = os.sysconf("SC_CLK_TCK")
    found |= _idling(images)
    imports = _imports()
    slowest = sorted(imports, key=lambda name: -imports[name]["own_ms"])[:IMPORTS]
    found["imports"] = len(imports)
    found["imports_ms"] = sum(cost["own_ms"] for cost in imports.values())
    found["slowest_imports"] = [{"name": name, **imports[name], "why": WHY.get(name, "")} for name in slowest]
    return found


def table(found: dict[str, Any]) -> str:
    bare, answer, end = (statistics.median(found[name]) for name in ("bare_s", "first_answer_s", "end_s"))
    second = found["ticks_per_s"]
    rows = [
        ("`banger-vmm`, from exec to the API's first answer", f"{answer * 1e3:.0f} ms"),
        ("a bare interpreter start", f"{bare * 1e3:.1f} ms"),
        ("ratio", f"{answer / bare:.2f}"),
        (f"{found['imports']} imports, timed by Python, which slows them", f"{found['imports_ms']:.0f} ms"),
        ("memory of the process without QEMU, idle guest (PSS)", f"{found['pss_mib']:.1f} MiB"),
        ("from QEMU's death to the process's end", f"{end * 1e3:.0f} ms"),
    ]
    for state in ("idle", "paused"):
        for name, whose in (("engine", "`banger-vmm`"), ("qemu", "QEMU")):
            used = found[f"{state}_ticks_{name}"]
            share = f"{used / second / COUNT_S * 100:.1f} % of a processor"
            rows.append((f"ticks in {COUNT_S} s, guest {state}: {whose}", f"{used:.0f} ({share})"))
    lines = ["| what | median |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in rows)]
    lines += ["", "| slowest imports | by itself | with its own | needed for |", "| --- | --- | --- | --- |"]
    for cost in found["slowest_imports"]:
        times = f"{cost['own_ms']:.1f} ms | {cost['whole_ms']:.1f} ms"
        lines.append(f"| `{cost['name']}` | {times} | {cost['why'] or '?'} |")
    return "\n".join(lines)
