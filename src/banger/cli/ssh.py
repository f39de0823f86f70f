"""banger vm ssh, ssh-config and proxy."""

import argparse
import os
import select
import socket
import sys

from banger.cli.connect import client, name_and_words, required_name
from banger.client.api import Client
from banger.client.guest import open_tunnel
from banger.model.documents import VmDocument
from banger.model.errors import BangerError, Invalid
from banger.model.text import harmless
from banger.paths import Paths, default_paths

CONNECTION_FAILED = 255  # ssh(1), "Exit status"
REMINDER_S = 10.0  # for the daemon's answer
# a machine that powers off loses its sshd first, then its agent, and then ends: seconds of patience for each step
AGENT_END_S = 3.0
MACHINE_END_S = 15.0


class Bounded(Client):
    """A client that gives up on a daemon that does not answer."""

    def dial(self) -> socket.socket:
        stream = super().dial()
        stream.settimeout(REMINDER_S)
        return stream


def run_ssh(arguments: argparse.Namespace) -> int:
    """Log in, or run a command; the status is ssh's."""
    from banger.client.ssh import check_key, pin_host_keys, run_ssh_program, ssh_argv

    if arguments.json:
        raise Invalid("ssh passes the command's own output through, so --json means nothing here", hint="leave it out")
    paths = default_paths()
    name, words = name_and_words(arguments, arguments.words)
    vm = client().show_vm(name)
    check_key(paths)
    pin_host_keys(vm, paths.vm(vm["id"]).known_hosts)
    status = run_ssh_program(ssh_argv(vm, paths, arguments.user, [*arguments.tail, *words]))
    if status:
        _remind(vm, paths, status)
    return status


def _remind(vm: VmDocument, paths: Paths, status: int) -> None:
    """One line, when the session ended because of the machine: what is wrong with it and what to type."""
    try:
        said = (_other_keys(vm, paths) if status == CONNECTION_FAILED else "") or _ill(vm, status)
    except (BangerError, OSError):
        return  # nothing is known
    if said:
        print(f"banger: {harmless(said)}", file=sys.stderr)


def _other_keys(vm: VmDocument, paths: Paths) -> str:
    from banger.client.ssh import host_keys, pinned

    known_hosts = paths.vm(vm["id"]).known_hosts
    try:
        changed = not set(pinned(vm, known_hosts)) & set(host_keys(vm))
    except BangerError:
        return ""  # it does not answer: that is for the health check to tell
    if not changed:
        return ""
    return f"{vm['name']} has other SSH host keys than at the first login; if you changed them, rm {known_hosts}"


def _ill(vm: VmDocument, status: int) -> str:
    connection = Bounded(default_paths())
    if status != CONNECTION_FAILED and connection.show_vm(vm["id"])["state"] == "running":
        return ""
    _wait_for_end(vm["engine_pid"], AGENT_END_S)
    health = connection.vm_health(vm["id"])
    if health.status == "unhealthy" and _wait_for_end(vm["engine_pid"], MACHINE_END_S):
        health = connection.vm_health(vm["id"])
    failed = next((check for check in health.checks if not check.ok), None)
    if failed is None:
        return ""
    return f"{vm['name']} is {health.status}: {failed.name}: {failed.detail}; try: {failed.hint}"


def _wait_for_end(pid: int | None, seconds: float) -> bool:
    """Whether the process has ended within so many seconds."""
    try:
        descriptor = os.pidfd_open(pid or 0)
    except OSError:
        return False
    try:
        return bool(select.select([descriptor], [], [], seconds)[0])
    finally:
        os.close(descriptor)


def run_ssh_config(arguments: argparse.Namespace) -> int:
    from banger.client.ssh import check_key, config_block, pin_host_keys, ssh_hosts, ssh_options

    paths = default_paths()
    vm = client().show_vm(required_name(arguments))
    check_key(paths)
    pin_host_keys(vm, paths.vm(vm["id"]).known_hosts)
    options = ssh_options(vm, paths, "root")
    if arguments.json:
        from banger.cli.render import print_json

        print_json({"hosts": ssh_hosts(vm), "options": options})
    else:
        print(config_block(vm, options))
    return 0


def run_proxy(arguments: argparse.Namespace) -> int:
    """Started by ssh for each connection: an error is one line, which ssh passes on."""
    from banger.client.stdio import join

    try:
        vm = client().show_vm(required_name(arguments))
        with open_tunnel(vm, "localhost", arguments.port, wait_s=arguments.wait) as stream:
            join(stream, sys.stdin.fileno(), sys.stdout.fileno())
    except BangerError as error:
        print(f"error: {error.message}; {error.hint}", file=sys.stderr)
        return error.exit_code
    return 0
