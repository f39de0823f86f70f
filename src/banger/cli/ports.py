"""banger vm ports"""

import argparse

from banger.cli.connect import client, required_name
from banger.cli.render import print_json, table
from banger.client.ports import PortDocument, listening_ports


def run_ports(arguments: argparse.Namespace) -> int:
    vm = client().show_vm(required_name(arguments))
    ports = listening_ports(vm)
    if arguments.json:
        print_json(ports)
        return 0
    if not ports:
        print(f"nothing listens in {vm['name']}")
        return 0
    table(("PORT", "PROTO", "ADDRESS", "PROCESS", "PID", "URL"), (_row(port) for port in ports))
    if (hint := _hint(vm["name"], ports)) is not None:
        print(f"\n{hint}")
    return 0


def _row(port: PortDocument) -> tuple[str, ...]:
    pid = str(port["pid"]) if port["pid"] is not None else "-"
    addresses = ", ".join(port["addresses"]) or "-"
    return str(port["port"]), port["protocol"], addresses, port["process"] or "-", pid, port["url"] or ""


def _hint(name: str, ports: list[PortDocument]) -> str | None:
    """How to reach the most interesting one from here."""
    streams = [port for port in ports if port["protocol"] == "tcp"]
    best = next((port for port in streams if port["url"]), streams[0] if streams else None)
    if best is None:
        return None
    where = "then open" if best["url"] else "then connect to"
    local = f"{10000 + best['port']}" if best["port"] < 1024 else str(best["port"])
    place = f"http://localhost:{local}/" if best["url"] else f"localhost:{local}"
    word = local if local == str(best["port"]) else f"{local}:{best['port']}"
    return f"to reach one from here: banger vm forward {name} {word}, {where} {place}"
