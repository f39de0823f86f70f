"""banger vm: the verbs that reach into a guest, over vsock, with or without a network."""

import argparse
from collections.abc import Callable
from importlib import import_module

from banger.cli.connect import add_name
from banger.cli.parser import Handler, Verbs


def register(verbs: Verbs) -> None:
    _register_cp(verbs)
    _register_ssh(verbs)
    _register_ports(verbs)
    _register_console(verbs)
    _register_opencode(verbs)


def _lazy(module: str, function: str) -> Handler:
    """A handler whose module is imported when the verb is used, and not for every other verb."""

    def handler(arguments: argparse.Namespace) -> int:
        run: Callable[[argparse.Namespace], int] = getattr(import_module(f"banger.cli.{module}"), function)
        return run(arguments)

    return handler


def _register_cp(verbs: Verbs) -> None:
    verb = verbs.add(
        "cp",
        _lazy("cp", "run_cp"),
        "copy files and directories into a VM, or out of it",
        epilog="NAME:PATH is a place in a VM; a relative PATH begins at its root's home.\n"
        "examples:  banger vm cp ./src demo:/root/\n"
        "           banger vm cp demo:/var/log/syslog .\n"
        "           tar c . | banger vm cp - demo:/srv\n"
        "           banger vm cp demo:/etc - | tar t",
    )
    verb.add_argument("source", metavar="SOURCE", help="a path, NAME:PATH, or - for a tar archive on standard input")
    verb.add_argument("target", metavar="TARGET", help="a path, NAME:PATH, or - for a tar archive on standard output")
    verb.add_argument("-a", "--archive", action="store_true", help="keep owners, and set-user-id and set-group-id bits")
    verb.add_argument("-u", "--user", metavar="USER", help="the guest's user who shall own what is copied in")
    verb.add_argument("-q", "--quiet", action="store_true", help="show no progress")


def _register_ssh(verbs: Verbs) -> None:
    verb = verbs.add(
        "ssh",
        _lazy("ssh", "run_ssh"),
        "log in with the system's ssh, over vsock: no network is needed",
        epilog="Words behind NAME are the remote command; behind -- everything goes to ssh as it is,\n"
        "options first. Your ~/.ssh/config applies where it does not contradict what is needed.\n"
        "examples:  banger vm ssh demo\n"
        "           banger vm ssh demo uptime\n"
        "           banger vm ssh demo -- ls -l /root\n"
        "           banger vm ssh demo -- -L 8080:localhost:80 -A",
    )
    add_name(verb)
    verb.set_defaults(takes_tail=True, more="words")
    verb.add_argument("words", nargs="*", metavar="COMMAND", help="a command to run instead of a shell")
    verb.add_argument("-u", "--user", metavar="USER", default="root", help="the user to log in as (default: root)")
    verb = verbs.add(
        "ssh-config",
        _lazy("ssh", "run_ssh_config"),
        "print a block for ~/.ssh/config, for editors, scp and rsync",
        epilog="examples:  banger vm ssh-config demo >> ~/.ssh/config\n           scp report.txt demo.banger:",
    )
    add_name(verb)


def register_plumbing(verbs: Verbs) -> None:
    """What other programs run; last in the help."""
    verb = verbs.add("proxy", _lazy("ssh", "run_proxy"), "join standard input and output with a port of the guest")
    add_name(verb)
    verb.add_argument("--port", type=int, default=22, metavar="N", help="the guest's TCP port (default: 22)")
    verb.add_argument(
        "--wait", type=float, default=0.0, metavar="S", help="how long to try while nothing listens there (default: 0)"
    )


def _register_ports(verbs: Verbs) -> None:
    add_name(verbs.add("ports", _lazy("ports", "run_ports"), "list what listens in a VM: ports, processes, URLs"))
    verb = verbs.add(
        "forward",
        _lazy("forward", "run_forward"),
        "forward ports of this host's loopback to a VM, until Ctrl-C",
        epilog="PORT is [LOCAL:][HOST:]GUEST; LOCAL 0 takes a free port, HOST is a host as the guest sees it.\n"
        "examples:  banger vm forward demo 8080:80 5432\n"
        "           banger vm forward demo 0:4096",
    )
    add_name(verb)
    verb.set_defaults(more="ports")
    verb.add_argument("ports", nargs="*", metavar="PORT", help="what to forward, like 8080:80")
    verb.add_argument("-q", "--quiet", action="store_true", help="show no traffic")


def _register_console(verbs: Verbs) -> None:
    verb = verbs.add(
        "console",
        _lazy("console", "run_console"),
        "attach to a VM's serial console",
        epilog="Press Enter for a prompt. Enter ~ . detaches; Enter ~ ? shows the other escapes.\n"
        "Input that is piped in is typed as it is, without escapes; output goes on until Ctrl-C.",
    )
    add_name(verb)
    verb.add_argument(
        "--escape", default="~", metavar="CHAR", help="the escape: ~, another one, like ^], or none (default: ~)"
    )


def _register_opencode(verbs: Verbs) -> None:
    verb = verbs.add(
        "opencode",
        _lazy("opencode", "run_opencode"),
        "forward a VM's opencode server to this host and print its URL and credentials",
    )
    add_name(verb)
    verb.add_argument("--attach", action="store_true", help="run the local opencode client on it")
    verb.add_argument("--port", type=int, default=0, metavar="N", help="the local port (default: a free one)")
    verb.add_argument(
        "--print", dest="print_only", action="store_true", help="print the credentials and forward nothing"
    )
