"""How each document looks to a person."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from banger.cli.render import duration, facts, table
from banger.model.documents import VmDocument
from banger.model.sizes import MIB, show_size
from banger.model.text import harmless

DIGEST_SHOWN = 16  # of a SHA-256, where people look

SOME = 20  # names of packages in one line

if TYPE_CHECKING:
    from banger.model.operation import Operation
    from banger.model.vm import Check, VmHealth


def print_vms(vms: Iterable[VmDocument]) -> None:
    vms = tuple(vms)
    rows = [
        (
            vm["name"],
            vm["state"],
            vm["health"],
            vm["image"],
            f"{vm['engine'] or '-'}/{vm['accelerator'] or '-'}",
            str(vm["vcpu"]),
            show_size(vm["memory_mib"] * MIB),
            show_size(vm["disk_allocated_bytes"] + vm["work_disk_allocated_bytes"]),
            "on" if vm["nat"] else "off",
            duration(vm["uptime_s"]) if vm["uptime_s"] is not None else "-",
        )
        for vm in vms
    ]
    if not rows:
        print("no VMs yet; `banger vm create` makes one")
        return
    table(("NAME", "STATE", "HEALTH", "IMAGE", "ENGINE", "VCPU", "MEMORY", "DISK", "NAT", "UPTIME"), rows)
    for vm in vms:
        if vm["state"] == "paused" and vm["problem"]:
            print(f"{vm['name']} is paused: {vm['problem']}")
        if vm["build"]:
            print(f"{vm['name']} is there for the build of the image {vm['build']}, and goes with it")


def print_vm(vm: VmDocument) -> None:
    accelerator = f"{vm['accelerator']} ({vm['accelerator_reason']})" if vm["accelerator"] else ""
    jail = ", in a jail" if vm["jailed"] else ""
    engine = f"{vm['engine']} {vm['engine_version']}{jail} ({vm['engine_reason']})" if vm["engine"] else ""
    address = f", guest address {vm['guest_ip']}" if vm["guest_ip"] else ""
    network = f"{vm['network']}{address}, nat {'on' if vm['nat'] else 'off'}"
    facts(
        (
            ("name", vm["name"]),
            ("id", vm["id"]),
            ("state", vm["state"]),
            ("problem", vm["problem"]),
            ("health", vm["health"]),
            ("image", vm["image"]),
            ("builds", vm["build"] and f"the image {vm['build']}; it goes when that is done"),
            ("vcpu", str(vm["vcpu"])),
            ("memory", show_size(vm["memory_mib"] * MIB)),
            (
                "disk",
                f"{show_size(vm['disk_bytes'])}, {show_size(vm['disk_allocated_bytes'])} of it allocated here",
            ),
            ("work disk", _work_disk(vm)),
            ("engine", engine),
            ("accelerator", accelerator),
            ("network", network),
            ("opencode", f"on guest port 4096; `banger vm opencode {vm['name']}`" if vm["opencode"] else ""),
            ("created", vm["created_at"]),
            ("uptime", duration(vm["uptime_s"]) if vm["uptime_s"] is not None else ""),
        )
    )


def _work_disk(vm: VmDocument) -> str:
    if not vm["work_disk_bytes"]:
        return ""
    allocated = show_size(vm["work_disk_allocated_bytes"])
    return f"{show_size(vm['work_disk_bytes'])} at /root, {allocated} of it allocated here"


def print_health(report: VmHealth) -> None:
    """Each check with what was seen; how long it has said so, where that is more than a moment; its next step."""
    print(f"{report.name} is {report.status}")
    now = time.time()
    for check in report.checks:
        word = "failed" if not check.ok else "wait" if check.starting else "ok"
        print(f"  {word:<6}  {check.name}: {check.detail}{_age(check, now)}")
        if check.hint:
            print(f"          try: {check.hint}")


def _age(check: Check, now: float) -> str:
    """When it was looked at, and since when it has said the same."""
    seen = f"seen {duration(max(0.0, now - check.checked_at))} ago"
    lasting = check.checked_at - check.since
    return f" ({seen}, so for {duration(lasting)})" if lasting >= 1 else f" ({seen})"


def print_image(image: Mapping[str, Any]) -> None:
    """An image as it is told, or as an operation that has made it knows it."""
    least = least_memory(image)
    needs = ["an engine that tells devices by ACPI or PCI"] * image["needs_acpi"]
    needs += [f"{show_size(least)} of memory or more"] if least else []
    parts = image["parts"]
    size = f"{show_size(parts['root']['bytes'])}, the root disk"
    if "allocated_bytes" in image:
        size += f"; {show_size(image['allocated_bytes'])} of files are in its directory"
    told = (
        ("name", image["name"]),
        ("kind", f"{kind_of(image)}{'' if image['managed'] else ': some of its files lie elsewhere'}"),
        ("distro", f"{image['distro']} {image['release']}".strip()),
        ("kernel", image["kernel_release"]),
        ("boot args", image["boot_args"]),
        ("size", size),
        ("needs", "; ".join(needs)),
        ("opencode", "yes" if image["has_opencode"] else "no"),
        ("packages", str(image["packages"]) if "manifest" in parts else "nobody wrote them down"),
        ("made of", ", ".join(image["parents"])),
        ("children", ", ".join(image.get("children", ()))),
        ("used by", ", ".join(image.get("vms", ()))),
        ("SSH key", image["seed_key"]),
        ("origin", image["origin"]),
        ("created", image["created_at"]),
    )
    # an imported image brings words of whoever has made it
    facts((name, harmless(value)) for name, value in told)
    print()
    rows = []
    for role, part in parts.items():
        rows.append((role, show_size(part["bytes"]), part["sha256"][:DIGEST_SHOWN], part["file"]))
    table(("PART", "SIZE", "SHA256", "FILE"), (tuple(map(harmless, row)) for row in rows))


def kind_of(image: Mapping[str, Any]) -> str:
    return "managed" if image["managed"] else "registered"


def least_memory(image: Mapping[str, Any]) -> int:
    """Bytes that its machines need at least; 0 when nobody knows."""
    from banger.model.vm import OPENCODE_MEMORY_MIB

    return max(int(image["memory_mib"]), OPENCODE_MEMORY_MIB if image["has_opencode"] else 0) * MIB


def print_built(operation: Operation) -> None:
    """The image, how its packages differ from its base's, and how long each stage took."""
    from banger.cli.recipes import package_words

    built = operation.result
    image, packages = built["image"], built["packages"]
    rows = [(stage.name, duration(stage.seconds)) for stage in operation.stages if stage.seconds >= 1]
    table(("STAGE", "TOOK"), rows)
    print()
    facts(
        (
            ("image", image["name"]),
            ("from", ", ".join(image["parents"])),
            ("size", show_size(sum(part["bytes"] for part in image["parts"].values()))),
            ("packages", f"{image['packages']}; {package_words(packages)}"),
            ("came", _some([package["name"] for package in packages if not package["before"]])),
            ("went", _some([package["name"] for package in packages if not package["after"]])),
            ("cached", ", ".join(built["cached"])),
            ("output", built["log"]),
            ("took", _took(operation)),
        )
    )


def _some(names: list[str]) -> str:
    more = f" and {len(names) - SOME} more" if len(names) > SOME else ""
    return ", ".join(names[:SOME]) + more


def print_verified(found: Mapping[str, Any]) -> None:
    print(f"the image {found['image']} is sound")
    table(("PART", "PASSED"), ((role, ", ".join(checks)) for role, checks in found["checked"].items()))


def print_operations(operations: Iterable[Operation]) -> None:
    rows = [
        (
            operation.id,
            operation.kind,
            operation.target,
            operation.state,
            _when(operation.created_at),
            _took(operation),
        )
        for operation in operations
    ]
    if not rows:
        print("no operations yet")
        return
    table(("ID", "KIND", "TARGET", "STATE", "BEGUN", "TOOK"), rows)


def print_operation(operation: Operation) -> None:
    facts(
        (
            ("id", operation.id),
            ("kind", operation.kind),
            ("target", operation.target),
            ("state", operation.state),
            ("begun", _when(operation.created_at)),
            ("took", _took(operation)),
            ("error", operation.error["message"] if operation.error else ""),
            ("hint", operation.error["hint"] if operation.error else ""),
        )
    )
    if operation.stages:
        print()
        rows = [(stage.name, duration(stage.seconds), "ok" if stage.ok else "failed") for stage in operation.stages]
        table(("STAGE", "TOOK", ""), rows)


def _when(seconds: float) -> str:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def _took(operation: Operation) -> str:
    return duration(operation.finished_at - operation.created_at) if operation.finished_at else ""
