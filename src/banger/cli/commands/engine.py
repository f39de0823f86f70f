"""banger engine"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

from banger.cli.connect import client
from banger.cli.operating import run_operation
from banger.cli.parser import Parser, Verbs


def register(parser: Parser) -> None:
    verbs = Verbs(parser)
    verb = verbs.add("list", list_engines, "list the engines on this host, and why each can be used or not")
    verb.add_argument("--verify", action="store_true", help="compare installed programs with their recorded digests")
    verb = verbs.add(
        "install",
        install,
        "install a release of Firecracker",
        epilog="example:  banger engine install firecracker --version 1.15.1",
    )
    _add_engine(verb)
    verb.add_argument("--version", metavar="V", help="the release, like 1.15.1 (default: the one banger recommends)")
    verb.add_argument("--mirror", metavar="URL", help="where releases lie, in place of Firecracker's own forge")
    file = verb.add_argument("--file", metavar="ARCHIVE", help="an archive on this host, in place of a download")
    file.complete = {"bash": "_shtab_compgen_files", "zsh": "_files", "tcsh": "f"}  # type: ignore[attr-defined]
    verb.add_argument("--sha256", metavar="HEX", help="the archive's SHA-256, for a release that banger has none of")
    verb.add_argument("-d", "--detach", action="store_true", help="return at once with the operation's id")
    verb = verbs.add("remove", remove, "remove an installed release of Firecracker")
    _add_engine(verb)
    verb.add_argument("--version", metavar="V", required=True, help="the release, as `banger engine list` shows it")


def _add_engine(verb: Parser) -> None:
    verb.add_argument("engine", choices=("firecracker",), metavar="ENGINE", help="firecracker")


def list_engines(arguments: argparse.Namespace) -> int:
    from banger.cli.render import print_json

    engines = client().list_engines(verify=arguments.verify)
    print_json(engines) if arguments.json else _print_engines(engines)
    return 0


def _print_engines(engines: Iterable[Mapping[str, Any]]) -> None:
    from banger.cli.render import table

    rows = [
        (
            engine["name"],
            engine["version"],
            engine["origin"],
            "yes" if engine["usable"] else "no",
            "yes" if engine["jailer"] else "-",
            " ".join(engine["program"]),
        )
        for engine in engines
    ]
    table(("NAME", "VERSION", "ORIGIN", "USABLE", "JAILER", "PROGRAM"), rows)
    print()
    for engine in engines:
        print(f"{engine['name']} {engine['version']}: {engine['reason']}")
        if engine["capabilities"]["vsock_pause_hang"]:
            print("  in this release, a pause and resume can make new connections to the guest hang")


def install(arguments: argparse.Namespace) -> int:
    from pathlib import Path

    spec = {
        "name": arguments.engine,
        "version": arguments.version,
        "mirror": arguments.mirror,
        # the daemon has another working directory
        "file": str(Path(arguments.file).expanduser().absolute()) if arguments.file is not None else None,
        "sha256": arguments.sha256,
    }
    return run_operation(arguments, partial(client().install_engine, spec), _print_installed)


def _print_installed(result: Mapping[str, Any]) -> None:
    from banger.cli.render import facts

    record = result["record"]
    print(f"Firecracker {record['version']} {'is installed' if result['changed'] else 'was installed already'}")
    facts(
        (
            ("directory", result["directory"]),
            ("source", record["source"]),
            ("archive", record["archive"]),
            ("trusted by", record["trust"]),
            ("firecracker", record["firecracker"]),
            ("jailer", record["jailer"]),
        )
    )


def remove(arguments: argparse.Namespace) -> int:
    from banger.cli.render import print_json

    client().remove_engine(arguments.engine, arguments.version)
    if arguments.json:
        print_json({"name": arguments.engine, "version": arguments.version, "removed": True})
    else:
        print(f"Firecracker {arguments.version} is removed")
    return 0
