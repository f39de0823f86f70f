"""The dependency rules of the design, held from the first commit."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "banger"
DOMAIN = ("engine", "images", "network", "storage", "guest", "qemu")
FACE = ("cli", "tui", "client")

# package -> what of ours it may import (besides itself)
MAY_IMPORT = {
    "model": (),
    "config": ("model",),
    "paths": ("model",),
    "system": ("model",),
    "store": ("model",),
    "jobs": ("model", "store"),
    **dict.fromkeys(DOMAIN, ("model", "config", "paths", "system")),
    "service": ("model", "config", "paths", "system", "store", "jobs", *(d for d in DOMAIN if d != "qemu")),
    "api": ("model", "service", "jobs"),
    "client": ("model", "config", "paths"),
    "cli": ("model", "config", "paths", "client"),
    "tui": ("model", "config", "paths", "client"),
    "daemon": ("model", "config", "paths", "system", "store", "jobs", "service", "api"),
}
# each exception is explained in docs/decisions.md
EXCEPTIONS = {
    ("client", "system.process.spawn_session"),  # starting the daemon: the one module that starts processes does it
    ("cli", "system.process.run"),  # `verify` runs banger's own commands, as a person would
    ("client", "system.process.run_foreground"),  # the system's ssh, with something to say after it has ended
    ("cli", "system.process.run_foreground"),  # likewise the opencode client
    ("cli", "daemon.run"),  # `daemon run` is the daemon
    # streams to a guest go straight over its vsock socket, and both ends pack trees of files alike
    ("client", "guest.protocol"),
    ("client", "guest.tree"),
}


def modules() -> list[Path]:
    return sorted(SOURCE.rglob("*.py"))


def imports_of(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            # `from package import module` names a module as well
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def ours(path: Path) -> Iterator[str]:
    for name in imports_of(path):
        if name.startswith("banger.") and name != "banger.__version__":
            yield name.removeprefix("banger.")


def package_of(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(SOURCE)))
def test_a_module_imports_only_what_its_layer_may(path: Path) -> None:
    package = package_of(path)
    if package in ("__init__", "__main__"):
        return
    allowed = {package, *MAY_IMPORT[package]}
    wrong = [name for name in ours(path) if name.split(".")[0] not in allowed and (package, name) not in EXCEPTIONS]
    assert not wrong, f"{package} may not import {wrong}"


def test_only_system_process_starts_processes() -> None:
    wrong = [
        str(path.relative_to(SOURCE))
        for path in modules()
        if any(name.split(".")[0] == "subprocess" for name in imports_of(path))
        and path != SOURCE / "system" / "process.py"
        and path.parent != SOURCE / "guest" / "agent"  # it starts processes in the guest
    ]
    assert not wrong


def test_only_system_touches_the_kernels_edge() -> None:
    edge = {"pyroute2", "fcntl", "ctypes"}
    allowed = {"system", "client", "guest"}  # client: the start lock; guest: runs in the guest
    wrong = [
        str(p)
        for p in modules()
        if package_of(p) not in allowed and edge & {name.split(".")[0] for name in imports_of(p)}
    ]
    assert not wrong


def test_what_runs_in_the_guest_needs_only_the_standard_library() -> None:
    shared = [SOURCE / "guest" / "protocol.py", *(SOURCE / "guest" / "tree").glob("*.py")]
    inside = [*(SOURCE / "guest" / "agent").glob("*.py"), *shared]
    assert len(inside) > 6
    for path in inside:
        for name in imports_of(path):
            own = name.startswith(("banger.guest.agent", "banger.guest.protocol", "banger.guest.tree"))
            assert own or name.split(".")[0] in sys.stdlib_module_names, f"{path.name} imports {name}"


def test_files_and_functions_stay_small() -> None:
    wrong = []
    for path in modules():
        text = path.read_text()
        if text.count("\n") > 500:
            wrong.append(f"{path.name}: {text.count(chr(10))} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                size = (node.end_lineno or 0) - node.lineno + 1
                if size > 45:
                    wrong.append(f"{path.name}: {node.name} has {size} lines")
    assert not wrong
