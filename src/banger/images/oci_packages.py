"""Packages that a tree lacks, installed in it by its own apt: programs of the image run, and only here.

They run in a sandbox that has the tree as its root and the host's network; see `Sandbox`.
"""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from banger.images.apt_sources import host_sources
from banger.images.manifest import dpkg_packages
from banger.images.oci_tree import POLICY, Tree
from banger.images.sandbox import FILES, INSTALL, Sandbox, while_there_is_room
from banger.model.errors import CommandFailed, Unsupported
from banger.model.progress import Progress
from banger.model.text import harmless
from banger.system.files import in_thread

DEADLINE_S = 3600.0
# what a machine of ours is made of, beside what apt-get needs itself
PACKAGES = ("systemd-sysv", "udev", "dbus", "openssh-server", "python3", "iproute2", "ca-certificates", "bash",
            "procps", "kmod")  # fmt: skip
_APT = ("-y", "-q", "--no-install-recommends", "-o", "Dpkg::Use-Pty=0", "-o", "Dpkg::Options::=--force-unsafe-io",
        "-o", "Dpkg::Options::=--force-confold", "-o", "Acquire::Retries=2", "-o", "Acquire::http::Timeout=30",
        "-o", "Acquire::Languages=none")  # fmt: skip
_SOURCES = "/etc/apt/sources.list.d/banger-import.list"
_RESOLV = "/etc/resolv.conf"
_FORBIDDEN = b"#!/bin/sh\nexit 101\n"
_DEBIAN = {"11": "bullseye", "12": "bookworm", "13": "trixie"}
_FETCHED = re.compile(r"^Get:(\d+) ")
_CONFIGURED = re.compile(r"^Setting up (\S+)")


def lacking(tree: Tree) -> list[str]:
    """Which of `PACKAGES` dpkg does not have as installed."""
    status = (tree.read("/var/lib/dpkg/status") or b"").decode(errors="replace")
    there = {package["name"] for package in dpkg_packages(status)}
    return [name for name in PACKAGES if name not in there]


async def install(tree: Tree, packages: Sequence[str], progress: Progress) -> None:
    """Install packages; what the host lends for it is taken back, whatever happens.

    Raises `CommandFailed` with the last lines, `Timeout`, `HostRequirement` (the disk is full), `Unsupported` (the
    tree knows no place that packages come from).
    """
    policy, sources = tree.read(POLICY), await in_thread(_sources, tree)
    if sources:
        progress.note("the image has no package sources, and is given this host's")
    try:
        await in_thread(_lend, tree, sources)
        await _run(tree, ["/usr/bin/apt-get", "update", *_APT], progress)
        await _run(tree, ["/usr/bin/apt-get", "install", *_APT, *packages], progress)
        await _run(tree, ["/usr/bin/apt-get", "clean"], progress)
    finally:
        await in_thread(_take_back, tree, policy)


def _lend(tree: Tree, sources: Sequence[str]) -> None:
    tree.write(POLICY, _FORBIDDEN, 0o755)  # services are for the machine to start
    tree.write(_RESOLV, _host_resolver())
    if sources:
        tree.write(_SOURCES, "".join(f"{line}\n" for line in sources).encode())


def _take_back(tree: Tree, policy: bytes | None) -> None:
    tree.remove(POLICY)
    if policy is not None:
        tree.write(POLICY, policy, 0o755)
    tree.remove(_RESOLV)


async def compile_python(tree: Tree, directories: Iterable[str]) -> None:
    """Let the tree's Python compile modules: it is the only one that can. Raises `CommandFailed`, `Timeout`."""
    words = ["/usr/bin/python3", "-I", "-m", "compileall", "-q", "--invalidation-mode", "timestamp", *directories]
    sandbox = Sandbox(root=tree.root, capabilities=FILES)
    await sandbox.run(words, timeout=120, on_line=lambda _: None)


def _host_resolver() -> bytes:
    try:
        return Path("/etc/resolv.conf").read_bytes()[:65536]
    except OSError:
        return b""


def _sources(tree: Tree) -> list[str]:
    """The host's package sources, for a tree that has none of its own."""
    if any(_has_entries(tree, path) for path in _source_files(tree)):
        return []
    release = tree.release()
    found = host_sources(_DEBIAN.get(release.version, "")) if release.id == "debian" else []
    if not found:
        raise Unsupported(
            f"packages are missing, and the image ({release.name}) knows no place that they come from",
            hint="add sources to its /etc/apt, or install the packages before the image is saved",
        )
    return found


def _source_files(tree: Tree) -> list[str]:
    directory = tree.end_of("/etc/apt/sources.list.d")
    names = sorted(entry.name for entry in directory.iterdir()) if directory and directory.is_dir() else []
    return ["/etc/apt/sources.list", *(f"/etc/apt/sources.list.d/{name}" for name in names if ".." not in name)]


def _has_entries(tree: Tree, path: str) -> bool:
    text = (tree.read(path) or b"").decode(errors="replace")
    return bool(re.search(r"^\s*(deb\s|URIs:)", text, re.MULTILINE))


async def _run(tree: Tree, argv: Sequence[str], progress: Progress) -> None:
    configured = 0

    def told(line: str) -> None:
        nonlocal configured
        if match := _FETCHED.match(line):
            progress.progress(int(match[1]), None, "downloads")
        elif _CONFIGURED.match(line):
            configured += 1
            progress.progress(configured, None, "packages")

    sandbox = Sandbox(root=tree.root, capabilities=INSTALL, network=True)
    try:
        await while_there_is_room(tree.root, sandbox.run(argv, timeout=DEADLINE_S, on_line=told))
    except CommandFailed as error:
        raise _explained(argv, error) from error


def _explained(argv: Sequence[str], error: CommandFailed) -> CommandFailed:
    """With the first true error, and what helps."""
    lines = str(error.details.get("stderr", "")).splitlines()
    causes = [line[3:] for line in lines if line.startswith("E: ")]
    said = harmless(causes[0] if causes else error.message)
    hint = "check the network and the image's package sources, or install the packages before the image is saved"
    return CommandFailed(f"apt-get {argv[1]} failed in the image: {said}", hint=hint, details=error.details)
