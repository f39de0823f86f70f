"""What ssh is told: the words as a table, the real ssh's reading of them, and the keys that are pinned."""

import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from banger.client.ssh import config_block, pin_host_keys, pinned, proxy_command, ssh_argv, ssh_options
from banger.model.errors import Conflict, GuestUnreachable
from banger.paths import Paths
from tests.unit.client import fake

PATHS = Paths(Path("/s"), Path("/r"), Path("/c"))
PYTHON = "/usr/bin/python3"
PROXY = (
    "env BANGER_STATE_DIR=/s BANGER_RUNTIME_DIR=/r BANGER_CACHE_DIR=/c /usr/bin/python3 -P -m banger"
    " vm proxy 0123456789ab --port 22 --wait 30"
)
needs_ssh = pytest.mark.skipif(shutil.which("ssh") is None, reason="needs openssh-client")


@pytest.mark.parametrize(
    ("changes", "host", "proxy"),
    [
        ({}, "banger-0123456789ab", PROXY),
        ({"network": "none", "guest_ip": ""}, "banger-0123456789ab", PROXY),
        ({"network": "bridge", "guest_ip": ""}, "banger-0123456789ab", PROXY),
        ({"network": "bridge", "guest_ip": "10.77.0.2"}, "10.77.0.2", "none"),
        ({"network": "user", "guest_ip": "10.0.2.15"}, "banger-0123456789ab", PROXY),
    ],
)
def test_the_way_there(changes: dict[str, Any], host: str, proxy: str) -> None:
    options = ssh_options(fake.document(Path("/v"), **changes), PATHS, "root", python=PYTHON)
    assert (options["HostName"], options["ProxyCommand"]) == (host, proxy)
    assert options["HostKeyAlias"] == "banger-0123456789ab"


@pytest.mark.parametrize(
    ("command", "tail"),
    [
        ([], []),
        (["uptime"], ["uptime"]),
        (["-L", "8080:localhost:80", "-A"], ["-L", "8080:localhost:80", "-A"]),
        (["echo 'a b'"], ["echo 'a b'"]),
    ],
)
def test_the_words(command: list[str], tail: list[str]) -> None:
    assert ssh_argv(fake.document(Path("/v")), PATHS, "dev", command, python=PYTHON) == [
        "ssh",
        *("-o", "HostName=banger-0123456789ab"),
        *("-o", "Port=22"),
        *("-o", f"ProxyCommand={PROXY}"),
        *("-o", 'IdentityFile="/s/ssh/id_ed25519"'),
        *("-o", "IdentitiesOnly=yes"),
        *("-o", "HostKeyAlias=banger-0123456789ab"),
        *("-o", 'UserKnownHostsFile="/s/vms/0123456789ab/known_hosts"'),
        *("-o", "GlobalKnownHostsFile=/dev/null"),
        *("-o", "StrictHostKeyChecking=yes"),
        *("-o", "UpdateHostKeys=no"),
        *("-o", "CheckHostIP=no"),
        *("-o", "ForwardAgent=no"),
        *("-o", "ForwardX11=no"),
        *("-o", "LogLevel=ERROR"),
        *("-l", "dev", "demo"),
        *tail,
    ]


def test_odd_directories_survive_the_shell_and_ssh() -> None:
    paths = Paths(Path("/a b/100%h"), Path("/it's"), Path("/$c"))
    command = proxy_command(fake.document(Path("/v")), paths, PYTHON)
    assert "%%h" in command
    assert shlex.split(command.replace("%%", "%"))[1:4] == [
        "BANGER_STATE_DIR=/a b/100%h",
        "BANGER_RUNTIME_DIR=/it's",
        "BANGER_CACHE_DIR=/$c",
    ]


def understood(*words: str) -> dict[str, str]:
    """What the real ssh makes of its words, by option in small letters."""
    done = subprocess.run(["ssh", "-G", *words], capture_output=True, text=True, check=True)
    return dict(line.split(" ", 1) for line in done.stdout.splitlines() if " " in line)


@needs_ssh
def test_ssh_reads_the_block_as_it_is_meant(tmp_path: Path) -> None:
    paths = Paths(tmp_path / "with a space" / '100% "of"', Path("/r"), Path("/c"))
    vm = fake.document(Path("/v"))
    file = tmp_path / "config"
    file.write_text(config_block(vm, ssh_options(vm, paths, "root", python=PYTHON)) + "\n")
    for name in ("demo.banger", "banger-demo"):
        told = understood("-F", str(file), name)
        assert told["hostname"] == "banger-0123456789ab"
        assert (told["user"], told["port"]) == ("root", "22")
        assert told["stricthostkeychecking"] in ("true", "yes")
        assert told["proxycommand"] == proxy_command(vm, paths, PYTHON)
        assert told["identityfile"].replace("%%", "%") == str(paths.ssh_key)
        assert told["userknownhostsfile"].strip('"').replace("%%", "%") == str(paths.vm(vm["id"]).known_hosts)
    assert understood("-F", str(file), "elsewhere")["hostname"] == "elsewhere"


@needs_ssh
def test_a_persons_own_configuration_applies_but_leads_nowhere_else(tmp_path: Path) -> None:
    file = tmp_path / "config"
    file.write_text(
        "Host *\n  ProxyJump bastion\n  User me\n  Port 2222\n  ForwardAgent yes\n  Compression yes\n"
        "  StrictHostKeyChecking no\n  UserKnownHostsFile /dev/null\nHost demo\n  HostName demo.example\n"
    )
    vm = fake.document(Path("/v"), network="bridge", guest_ip="10.77.0.2")
    for machine in (vm, fake.document(Path("/v"))):
        told = understood("-F", str(file), *ssh_argv(machine, PATHS, "root", [], python=PYTHON)[1:])
        assert "proxyjump" not in told
        assert (told["user"], told["port"], told["compression"]) == ("root", "22", "yes")
        assert told["hostname"] in ("10.77.0.2", "banger-0123456789ab")
        assert told["stricthostkeychecking"] in ("true", "yes")
        assert told["userknownhostsfile"] == "/s/vms/0123456789ab/known_hosts"
        assert told["forwardagent"] == "no"
    asked = understood("-F", str(file), *ssh_argv(vm, PATHS, "root", ["-A"], python=PYTHON)[1:])
    assert asked["forwardagent"] == "yes"


def test_keys_are_pinned_once_for_their_owner_only(tmp_path: Path) -> None:
    known = tmp_path / "known_hosts"
    with fake.guest(tmp_path) as guest:
        pin_host_keys(guest.vm, known)
        assert known.read_text() == f"banger-0123456789ab {fake.KEY}\n"
        assert known.stat().st_mode & 0o777 == 0o600
        assert pinned(guest.vm, known) == [fake.KEY]
        guest.documents["/info"] = {"ssh_host_keys": []}
        pin_host_keys(guest.vm, known)
        assert len(guest.requests) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["known_hosts"]
    with pytest.raises(Conflict):
        pin_host_keys(fake.document(tmp_path / "none", state="stopped"), known)


def test_a_guest_that_has_just_booted_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its sshd makes the key before it listens."""
    with fake.guest(tmp_path) as guest, fake.service(fake.echo) as port:
        monkeypatch.setattr("banger.client.ssh.PORT", port)
        guest.documents["/info"] = {"ssh_host_keys": []}
        with pytest.raises(GuestUnreachable, match="no host key"):
            pin_host_keys(guest.vm, tmp_path / "known_hosts")
        assert [request.split()[0] for request in guest.requests] == ["GET", "CONNECT", "GET"]
        assert "Banger-Wait: 60\r\n" in guest.requests[1]
    assert not (tmp_path / "known_hosts").exists()


_BLOB = fake.KEY.split()[1]


@pytest.mark.parametrize(
    "key",
    [
        "ssh-rsa " + _BLOB,  # another type within
        "ssh-ed25519",
        "ssh-ed25519 not!base64",
        f"@cert-authority {_BLOB}",
        f"ssh-ed25519\n* {_BLOB}",
        "ssh-ed25519 " + "A" * 10_000,
        "",
        7,
    ],
)
def test_what_is_no_key_is_not_pinned(tmp_path: Path, key: object) -> None:
    with fake.guest(tmp_path) as guest:
        guest.documents["/info"] = {"ssh_host_keys": [fake.KEY, key]}
        with pytest.raises(GuestUnreachable, match="make no sense"):
            pin_host_keys(guest.vm, tmp_path / "known_hosts")
        guest.documents["/info"] = {"ssh_host_keys": [f"{fake.KEY} comment\n* {fake.KEY}"]}
        pin_host_keys(guest.vm, tmp_path / "known_hosts")
        assert (tmp_path / "known_hosts").read_text() == f"banger-0123456789ab {fake.KEY}\n"
