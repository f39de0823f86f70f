"""banger daemon"""

import argparse
import json
import os

from banger.cli.connect import client
from banger.cli.parser import Parser, Verbs
from banger.model.errors import BangerError, NotFound


def register(parser: Parser) -> None:
    verbs = Verbs(parser)
    verb = verbs.add("run", run, "run the daemon in the foreground (other commands start it by themselves)")
    verb.add_argument("--ready-fd", type=int, metavar="N", help="a descriptor that hears `ready`, or why not")
    verbs.add("status", status, "show whether the daemon runs, its memory and its files")
    verbs.add("stop", stop, "stop the daemon; VMs go on running, and the next daemon adopts them")


def run(arguments: argparse.Namespace) -> int:
    from banger.config import read_config
    from banger.daemon import run as serve
    from banger.paths import default_paths

    try:
        config = read_config()
        serve(default_paths(), config.settings, ready=arguments.ready_fd, warnings=config.warnings)
    except BangerError as error:
        if arguments.ready_fd is not None:
            os.write(arguments.ready_fd, json.dumps(error.to_dict(), default=str).encode())
        raise
    return 0


def _not_running() -> NotFound:
    return NotFound("the daemon is not running", hint="any command that needs it starts it")


def status(arguments: argparse.Namespace) -> int:
    from banger.cli.render import duration, facts, print_json
    from banger.client.transport import DaemonUnreachable
    from banger.model.sizes import show_size

    try:
        daemon = client(start=False).daemon_status()
    except DaemonUnreachable as error:
        raise _not_running() from error
    if arguments.json:
        print_json(daemon)
        return 0
    facts(
        (
            ("version", daemon.version),
            ("pid", str(daemon.pid)),
            ("uptime", duration(daemon.uptime_s)),
            ("memory", show_size(daemon.memory_bytes)),
            ("vms", f"{daemon.vms}, {daemon.running_vms} running"),
            ("operations", f"{daemon.running_operations} running"),
            ("socket", daemon.socket),
            ("state", daemon.state_dir),
            ("log", daemon.log),
        )
    )
    return 0


def stop(arguments: argparse.Namespace) -> int:
    from banger.cli.render import print_json
    from banger.client.transport import DaemonUnreachable
    from banger.client.wait import wait_for_end

    try:
        daemon = client(start=False).stop_daemon()
    except DaemonUnreachable as error:
        raise _not_running() from error
    wait_for_end(daemon.pid)
    if arguments.json:
        print_json(daemon)
    else:
        print(f"the daemon has stopped; {daemon.running_vms} VMs go on running")
    return 0
