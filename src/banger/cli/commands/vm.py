"""banger vm"""

import argparse
import sys
from functools import partial

from banger.cli.commands import vm_access, vm_disks
from banger.cli.connect import add_name, client, confirm, name_of, required_name
from banger.cli.operating import add_detach, delete_each, run_operation
from banger.cli.parser import Handler, Parser, Verbs
from banger.model.errors import Invalid

HEALTH_WAIT_MAX_S = 600


def register(parser: Parser) -> None:
    verbs = Verbs(parser)
    _register_create(verbs)
    verb = verbs.add("list", list_vms, "list the VMs")
    verb.add_argument("-q", "--quiet", action="store_true", help="names only")
    add_name(verbs.add("show", show, "show one VM"))
    _register_changes(verbs)
    _register_exec(verbs)
    vm_access.register(verbs)
    vm_disks.register(verbs)
    verb = verbs.add("health", health, "check a VM now: engine, agent, services")
    add_name(verb)
    verb.add_argument(
        "--wait", type=float, default=0.0, metavar="S", help="wait so many seconds until nothing is still starting"
    )
    add_name(verbs.add("report", report, "write a file with all that is known of a VM, for whoever looks for a fault"))
    verb = verbs.add(
        "logs",
        logs,
        "print the end of a VM's console log, and with -f what comes",
        epilog="-f goes on over restarts of the VM until it is deleted (status 0), or until Ctrl-C (status 130).",
    )
    add_name(verb)
    verb.add_argument("-f", "--follow", action="store_true", help="go on printing what comes")
    verb.add_argument("--source", choices=("console", "engine"), default="console", help="which log (default: console)")
    verb.add_argument("-n", "--lines", type=int, default=200, metavar="N", help="how many lines (default: 200)")
    vm_access.register_plumbing(verbs)


def _register_create(verbs: Verbs) -> None:
    verb = verbs.add("create", create, "create a VM, boot it, and return when it is healthy")
    add_name(verb, "the new VM's name; one is made up when you give none")
    verb.add_argument("--image", default="debian", help="the image to boot (default: debian)")
    verb.add_argument("--vcpu", type=int, default=2, metavar="N", help="virtual CPUs (default: 2)")
    verb.add_argument("--memory", default="1G", metavar="SIZE", help="memory, like 512M or 2G (default: 1G)")
    verb.add_argument("--disk", metavar="SIZE", help="the root disk's size (default: the image's)")
    work = verb.add_mutually_exclusive_group()
    work.add_argument("--work-disk", metavar="SIZE", help="the size of the disk that holds /root (default: 8G, sparse)")
    work.add_argument("--volume", metavar="NAME", help="a volume that becomes the VM's work disk")
    work.add_argument("--no-work-disk", action="store_true", help="keep /root on the root disk")
    verb.add_argument(
        "--nat", action=argparse.BooleanOptionalAction, default=False, help="let the VM reach the internet"
    )
    verb.add_argument(
        "--engine",
        choices=("auto", "firecracker", "qemu"),
        default="auto",
        help="what runs the VM; auto: firecracker where it can, else qemu (default: auto)",
    )
    verb.add_argument(
        "--no-opencode", dest="opencode", action="store_false", help="do not start the image's opencode server"
    )
    _wait_opencode(verb)
    add_detach(verb)


def _register_changes(verbs: Verbs) -> None:
    verb = verbs.add("start", change("start"), "boot a stopped VM and return when it is healthy")
    add_name(verb)
    _wait_opencode(verb)
    add_detach(verb)
    for name, text in (
        ("stop", "power a VM off; its disk is kept"),
        ("restart", "power a VM off, boot it again, and return when it is healthy"),
    ):
        verb = verbs.add(name, change(name), text)
        add_name(verb)
        verb.add_argument("--force", action="store_true", help="do not wait for the guest to power off")
        if name == "restart":
            _wait_opencode(verb)
        add_detach(verb)
    for name, text in (
        ("pause", "stop a VM's processors; its memory is kept"),
        ("resume", "let a paused VM run on"),
    ):
        verb = verbs.add(name, change(name), text)
        add_name(verb)
        add_detach(verb)
    verb = verbs.add(
        "delete",
        delete,
        "delete VMs and everything on their disks",
        epilog="With --keep-work-disk, what a VM has at /root becomes a volume of the VM's name, or NAME-2\n"
        "where that is taken. `banger volume list` shows it, `banger vm create --volume NAME` makes a VM with it.",
    )
    verb.add_argument("names", nargs="*", metavar="NAME", help="the VMs")
    verb.add_argument("--name", dest="named", action="append", default=[], metavar="NAME", help="the same, as a flag")
    verb.add_argument("--keep-work-disk", action="store_true", help="their work disks become volumes")
    verb.add_argument("-y", "--yes", action="store_true", help="do not ask")
    add_detach(verb)


def _register_exec(verbs: Verbs) -> None:
    verb = verbs.add(
        "exec",
        exec_in_vm,
        "run a command in a VM and exit with its status",
        epilog="example:  banger vm exec demo -- uname -a",
    )
    add_name(verb)
    verb.set_defaults(takes_tail=True, more="words")
    verb.add_argument("words", nargs="*", metavar="COMMAND", help="the command; put -- before it if it has flags")
    verb.add_argument("-i", "--stdin", action="store_true", help="pass our standard input to the command")
    verb.add_argument("-t", "--tty", action="store_true", help="give the command a terminal")
    verb.add_argument("-e", "--env", action="append", default=[], metavar="NAME=VALUE", help="set a variable")
    verb.add_argument("-w", "--cwd", metavar="DIR", help="the directory to run in (default: the user's home)")
    verb.add_argument("-u", "--user", metavar="USER", help="the user to run as (default: root)")
    verb.add_argument("--timeout", type=float, metavar="S", help="end the command after so many seconds (status 124)")


def _wait_opencode(verb: Parser) -> None:
    verb.add_argument(
        "--no-wait-opencode", dest="wait_opencode", action="store_false", help="return before opencode answers"
    )


def create(arguments: argparse.Namespace) -> int:
    from banger.model.sizes import MIB, parse_size
    from banger.model.vm import VmSpec

    spec = VmSpec(
        name=name_of(arguments, required=False),
        image=arguments.image,
        vcpu=arguments.vcpu,
        memory_mib=parse_size(arguments.memory, "--memory", unit="m") // MIB,
        nat=arguments.nat,
        engine=arguments.engine,
        opencode=arguments.opencode,
        wait_opencode=arguments.wait_opencode,
        disk_bytes=None if arguments.disk is None else parse_size(arguments.disk, "--disk", unit="g"),
        work_disk_bytes=_work_disk(arguments),
        volume=arguments.volume,
    )
    return run_operation(arguments, partial(client().create_vm, spec))


def _work_disk(arguments: argparse.Namespace) -> int | None:
    """Bytes; 0 for none, None for the usual size."""
    from banger.model.sizes import parse_size

    if arguments.no_work_disk:
        return 0
    if arguments.work_disk is None:
        return None
    size = parse_size(arguments.work_disk, "--work-disk", unit="g")
    if not size:
        raise Invalid("a work disk of no size was asked for", hint="--no-work-disk makes a VM without one")
    return size


def list_vms(arguments: argparse.Namespace) -> int:
    from banger.cli.render import print_json
    from banger.cli.show import print_vms

    vms = client().list_vms()
    if arguments.json:
        print_json(vms)
    elif arguments.quiet:
        for vm in vms:
            print(vm["name"])
    else:
        print_vms(vms)
    return 0


def show(arguments: argparse.Namespace) -> int:
    from banger.cli.render import print_json
    from banger.cli.show import print_vm

    vm = client().show_vm(required_name(arguments))
    print_json(vm) if arguments.json else print_vm(vm)
    return 0


def change(verb: str) -> Handler:
    def handler(arguments: argparse.Namespace) -> int:
        given = {name: getattr(arguments, name) for name in ("force", "wait_opencode") if hasattr(arguments, name)}
        return run_operation(arguments, partial(client().change_vm, required_name(arguments), verb, **given))

    return handler


def delete(arguments: argparse.Namespace) -> int:
    from banger.cli.volumes import deletion_question, volumes_of

    names = list(dict.fromkeys([*arguments.names, *arguments.named]))
    if not names:
        raise Invalid("no VM was named", hint="`banger vm list` shows what there is")
    connection = client()
    vms = [connection.show_vm(name) for name in names]
    kept = volumes_of(vms, connection.list_volumes()) if arguments.keep_work_disk else {}
    if not arguments.yes:
        confirm(deletion_question(vms, kept))
    keep = arguments.keep_work_disk
    doomed = [(vm["name"], partial(connection.delete_vm, vm["id"], keep_work_disk=keep)) for vm in vms]
    return delete_each(arguments, doomed, lambda kept: f"; its work disk is the volume {kept['name']}" if kept else "")


def exec_in_vm(arguments: argparse.Namespace) -> int:
    from banger.cli.exec import run_exec

    return run_exec(arguments)


def health(arguments: argparse.Namespace) -> int:
    from banger.cli.render import print_json
    from banger.cli.show import print_health

    if not 0 <= arguments.wait <= HEALTH_WAIT_MAX_S:
        raise Invalid("--wait is out of range", hint=f"choose 0 to {HEALTH_WAIT_MAX_S} seconds")
    report = client().vm_health(required_name(arguments), wait_s=arguments.wait)
    print_json(report) if arguments.json else print_health(report)
    failed = {check.name for check in report.checks if not check.ok}
    if report.status == "stopped":
        return 4
    return 6 if failed & {"engine", "engine-api", "agent"} else int(bool(failed))


def report(arguments: argparse.Namespace) -> int:
    from banger.cli.render import print_json

    written = client().report_vm(required_name(arguments))
    if arguments.json:
        print_json(written)
    else:
        print(written.path)
        print(f"look first at {written.look}", file=sys.stderr)
    return 0


def logs(arguments: argparse.Namespace) -> int:
    from banger.cli.logs import run_logs

    return run_logs(arguments)
