"""What the system's ssh is told of a VM: how to get there, who it is, and nothing that could be guessed wrong.

No network is needed: ssh runs `banger vm proxy`, which goes through the VM's vsock socket. Host keys come the same
way, from the agent, so there is no first use to trust on: no other machine can answer on that socket.
"""

import base64
import binascii
import os
import re
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path

from banger.client import guest
from banger.model.documents import VmDocument
from banger.model.errors import GuestUnreachable, HostRequirement
from banger.paths import Paths

PORT = 22
FIRST_S = 60.0  # how long a booting guest's sshd may take to make its key and to listen
LATER_S = 30.0  # how long one that has a key may take to listen
_KEYS_MAX = 16
_KEY_TYPE = re.compile(r"(ssh|ecdsa|sk-ssh|sk-ecdsa)-[a-z0-9-]{1,40}(@openssh\.com)?")
_KEY_BYTES_MAX = 4096
_DIRECT = "bridge"  # the kind of network in which the host reaches the guest's address


def alias(vm: VmDocument) -> str:
    """The VM's name in known_hosts, and in connections that ssh shares: never another VM's."""
    return f"banger-{vm['id']}"


def ssh_options(vm: VmDocument, paths: Paths, user: str, *, python: str = sys.executable) -> dict[str, str]:
    """ssh_config(5) options by name, as one writes them in a configuration file."""
    direct = vm["network"] == _DIRECT and bool(vm["guest_ip"])
    return {
        "HostName": vm["guest_ip"] if direct else alias(vm),
        "User": user,
        "Port": str(PORT),
        "ProxyCommand": "none" if direct else proxy_command(vm, paths, python),
        "IdentityFile": _file(paths.ssh_key),
        "IdentitiesOnly": "yes",
        "HostKeyAlias": alias(vm),
        "UserKnownHostsFile": _file(paths.vm(vm["id"]).known_hosts),
        "GlobalKnownHostsFile": "/dev/null",
        "StrictHostKeyChecking": "yes",
        "UpdateHostKeys": "no",
        "CheckHostIP": "no",
        # the guest may be hostile: it gets the person's agent and display when they ask for it (-A, -X)
        "ForwardAgent": "no",
        "ForwardX11": "no",
        "LogLevel": "ERROR",
    }


def proxy_command(vm: VmDocument, paths: Paths, python: str) -> str:
    """A shell command. It names the directories, as editors and cron jobs run it with another environment."""
    directories = {
        "BANGER_STATE_DIR": paths.state,
        "BANGER_RUNTIME_DIR": paths.runtime,
        "BANGER_CACHE_DIR": paths.cache,
    }
    words = ["env", *(f"{name}={value}" for name, value in directories.items())]
    # -P: a directory named banger where ssh happens to run is not us
    words += [python, "-P", "-m", "banger", "vm", "proxy", vm["id"], "--port", str(PORT), "--wait", f"{LATER_S:g}"]
    return shlex.join(words).replace("%", "%%")


def _file(path: Path) -> str:
    """A file's name as ssh_config(5) takes it: quoted, and % doubled."""
    text = str(path).replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{text}"'


def ssh_argv(vm: VmDocument, paths: Paths, user: str, command: list[str], *, python: str = sys.executable) -> list[str]:
    """`command` is whatever goes behind the destination: ssh takes options there too, and then the remote command.

    The person's ~/.ssh/config still applies, but ssh keeps the first value of an option, and ours come first.
    """
    argv = ["ssh"]
    for name, value in ssh_options(vm, paths, user, python=python).items():
        if name != "User":
            argv += ["-o", f"{name}={value}"]
    return [*argv, "-l", user, vm["name"], *command]


def run_ssh_program(argv: list[str]) -> int:
    """Run ssh in the foreground; its exit status. Raises `HostRequirement` when the host has no ssh."""
    from banger.system.process import run_foreground

    return run_foreground(argv, package="openssh-client")


def ssh_hosts(vm: VmDocument) -> tuple[str, str]:
    """What the VM is called in a Host block."""
    return f"{vm['name']}.banger", f"banger-{vm['name']}"


def config_block(vm: VmDocument, options: Mapping[str, str]) -> str:
    lines = [f"Host {' '.join(ssh_hosts(vm))}", *(f"    {name} {value}" for name, value in options.items())]
    return "\n".join(lines)


def check_key(paths: Paths) -> None:
    """Raise `HostRequirement` when the private key that our images let in is not there."""
    if not paths.ssh_key.exists():
        raise HostRequirement(
            f"there is no SSH key at {paths.ssh_key}",
            hint="`banger image bootstrap` makes one, and an image that lets it in",
        )


def pin_host_keys(vm: VmDocument, known_hosts: Path) -> None:
    """At the first login: ask the guest's agent for the SSH host keys and keep them; later, only that the VM runs.

    A guest that has just booted may have no key yet: its sshd is waited for, at most `FIRST_S` seconds.
    """
    guest.check_running(vm)
    if known_hosts.exists() and known_hosts.stat().st_size:
        return
    keys = host_keys(vm)
    if not keys:
        guest.open_tunnel(vm, "localhost", PORT, wait_s=FIRST_S).close()
        keys = host_keys(vm)
    if not keys:
        raise GuestUnreachable(
            f"the sshd of {vm['name']} has no host key",
            hint=f"banger vm exec {vm['name']} -- ls -l /etc/ssh",
        )
    fresh = known_hosts.with_name(f".{known_hosts.name}.{os.getpid()}")
    try:
        fresh.touch(0o600)
        fresh.write_text("".join(f"{alias(vm)} {key}\n" for key in keys))
        fresh.replace(known_hosts)
    finally:
        fresh.unlink(missing_ok=True)


def host_keys(vm: VmDocument) -> list[str]:
    """The guest's SSH host keys as its agent reads them, each `TYPE BASE64`. Raises `GuestUnreachable` for others."""
    told = guest.get_document(vm, "/info").get("ssh_host_keys")
    if not isinstance(told, list) or len(told) > _KEYS_MAX:
        raise guest.unreachable(vm, "its agent tells SSH host keys that make no sense")
    return [_checked(vm, line) for line in told]


def _checked(vm: VmDocument, line: object) -> str:
    words = line.split()[:2] if isinstance(line, str) else []
    try:
        kind, encoded = words
        blob = base64.b64decode(encoded, validate=True)
    except (ValueError, binascii.Error):
        kind, encoded, blob = "", "", b""
    # RFC 4253, 6.6: the key itself begins with its type's name
    if not _KEY_TYPE.fullmatch(kind) or len(blob) > _KEY_BYTES_MAX or blob[4 : 4 + len(kind)] != kind.encode():
        raise guest.unreachable(vm, "its agent tells SSH host keys that make no sense")
    return f"{kind} {encoded}"


def pinned(vm: VmDocument, known_hosts: Path) -> list[str]:
    """The keys that were kept, as `host_keys` gives them."""
    lines = known_hosts.read_text().splitlines() if known_hosts.exists() else []
    return [" ".join(line.split()[1:3]) for line in lines if line.startswith(f"{alias(vm)} ")]
