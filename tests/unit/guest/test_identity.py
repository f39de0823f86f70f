"""POST /identity and POST /opencode, below a false root with programs that record."""

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from banger.guest.agent import become
from banger.guest.agent.http1 import Refused, Request
from banger.guest.agent.identity import change
from banger.guest.agent.jsonlite import encode
from banger.guest.channel import Guest
from banger.model.errors import GuestUnreachable, Invalid, Unsupported
from banger.model.guest import GuestNetwork, IdentityChange
from tests.unit.guest.hybrid import guest
from tests.unit.guest.roots import false_root, program, told, write

_DEADLINE = 30.0
MACHINE_ID = "0123456789abcdef0123456789abcdef"


def run(folder: Path, root: Path, test: Callable[[Guest], Awaitable[object]]) -> None:
    async def body() -> None:
        async with asyncio.timeout(_DEADLINE), guest(folder, "--root", str(root)) as machine:
            await test(machine)

    asyncio.run(body())


def set_identity(folder: Path, root: Path, **fields: object) -> None:
    run(folder, root, lambda machine: machine.set_identity(IdentityChange(**fields)))  # type: ignore[arg-type]


def test_hostname_goes_to_the_kernel_and_both_files(tmp_path: Path) -> None:
    root = false_root(tmp_path / "root")
    write(root, "etc/hosts", "127.0.0.1\tlocalhost\n127.0.1.1\tbanger\n10.0.0.1\tregistry\n")
    set_identity(tmp_path, root, hostname="box-2")
    assert (root / "proc/sys/kernel/hostname").read_text() == "box-2"
    assert (root / "etc/hostname").read_text() == "box-2\n"
    assert (root / "etc/hosts").read_text() == "127.0.0.1\tlocalhost\n127.0.1.1\tbox-2\n10.0.0.1\tregistry\n"
    assert [path.name for path in (root / "etc").iterdir() if "banger" in path.name] == []


def test_hosts_is_made_when_it_is_missing(tmp_path: Path) -> None:
    root = false_root(tmp_path / "root")
    set_identity(tmp_path, root, hostname="box-2")
    lines = (root / "etc/hosts").read_text().splitlines()
    assert lines == ["127.0.0.1\tlocalhost", "127.0.1.1\tbox-2", "::1\tlocalhost ip6-localhost ip6-loopback"]


def test_machine_id_is_written_with_the_copy_that_is_a_file(tmp_path: Path) -> None:
    root = false_root(tmp_path / "root")
    write(root, "var/lib/dbus/machine-id", "old\n")
    set_identity(tmp_path, root, machine_id=MACHINE_ID)
    assert (root / "etc/machine-id").read_text() == MACHINE_ID + "\n"
    assert (root / "etc/machine-id").stat().st_mode & 0o777 == 0o444
    assert (root / "var/lib/dbus/machine-id").read_text() == MACHINE_ID + "\n"


def test_link_to_the_machine_id_stays_one(tmp_path: Path) -> None:
    root = false_root(tmp_path / "root")
    (root / "var/lib/dbus").mkdir(parents=True)
    (root / "var/lib/dbus/machine-id").symlink_to("/etc/machine-id")
    set_identity(tmp_path, root, machine_id=MACHINE_ID)
    assert (root / "var/lib/dbus/machine-id").is_symlink()


def test_network_is_set_by_one_ip(tmp_path: Path) -> None:
    root = false_root(tmp_path / "root")
    (root / "etc/resolv.conf").symlink_to("../run/stub")
    set_identity(tmp_path, root, network=GuestNetwork("10.0.2.16/24", "10.0.2.2", ("10.0.2.3", "192.0.2.1")))
    assert told(root) == [
        "ip -batch -",
        "link set lo up",
        "address flush dev eth0 scope global",
        "address replace 10.0.2.16/24 dev eth0",
        "link set eth0 up",
        "route replace default via 10.0.2.2 dev eth0",
    ]
    assert (root / "etc/resolv.conf").read_text() == "nameserver 10.0.2.3\nnameserver 192.0.2.1\n"
    assert not (root / "run/stub").exists()


def test_network_without_gateway_and_servers_leaves_both(tmp_path: Path) -> None:
    root = false_root(tmp_path / "root")
    write(root, "etc/resolv.conf", "nameserver 9.9.9.9\n")
    set_identity(tmp_path, root, network=GuestNetwork("10.0.2.16/24"))
    assert not [line for line in told(root) if line.startswith("route")]
    assert (root / "etc/resolv.conf").read_text() == "nameserver 9.9.9.9\n"


def test_new_host_keys_of_the_kinds_there_were_and_sshd_reads_them(tmp_path: Path) -> None:
    root = false_root(tmp_path / "root")
    write(root, "etc/ssh/ssh_host_rsa_key", "old\n")
    # a script's process has the script's name
    sshd = program(root, "sshd", "#!/bin/sh\ntrap 'echo reloaded >{root}/reloaded; exit' HUP\necho up >{root}/up\n"
                   "while :; do sleep 0.05; done\n")  # fmt: skip

    async def test(machine: Guest) -> None:
        daemon = await asyncio.create_subprocess_exec(str(sshd))
        write(root, "run/sshd.pid", f"{daemon.pid}\n")
        try:
            while not (root / "up").exists():  # noqa: ASYNC110 (it is another process)
                await asyncio.sleep(0.01)
            found = await machine.set_identity(IdentityChange(host_keys="new"))
            await daemon.wait()
        finally:
            if daemon.returncode is None:
                daemon.kill()
        assert [key.split()[0] for key in found.ssh_host_keys] == ["ssh-ed25519", "ssh-rsa"]

    run(tmp_path, root, test)
    assert (root / "reloaded").exists()
    assert (root / "etc/ssh/ssh_host_ed25519_key").read_text().startswith("private ed25519")
    assert not list((root / "etc/ssh").glob(".banger*"))


def test_pid_of_something_else_is_left_alone(tmp_path: Path) -> None:
    root = false_root(tmp_path / "root")
    write(root, "run/sshd.pid", f"{os.getpid()}\n")  # SIGHUP would end the tests
    set_identity(tmp_path, root, host_keys="new")


def test_failing_key_generator_changes_no_key(tmp_path: Path) -> None:
    root = false_root(tmp_path / "root")
    program(root, "ssh-keygen", "#!/bin/sh\necho 'no room' >&2\nexit 1\n")
    with pytest.raises(GuestUnreachable, match="host_keys: ssh-keygen ended with status 1: no room"):
        set_identity(tmp_path, root, host_keys="new")
    assert (root / "etc/ssh/ssh_host_ed25519_key").read_text() == "private old\n"


def test_failing_step_is_named_and_those_before_it_are_done(tmp_path: Path) -> None:
    root = false_root(tmp_path / "root")
    (root / "usr/bin/ip").unlink()
    with pytest.raises(GuestUnreachable, match="network: there is no ip"):
        set_identity(tmp_path, root, machine_id=MACHINE_ID, network=GuestNetwork("10.0.2.16/24"))
    assert (root / "etc/machine-id").exists()


def request(document: object) -> Request:
    made = Request("POST", "/identity", {})
    made.body = encode(document).encode() if not isinstance(document, bytes) else document
    return made


def test_clock_and_entropy_reach_the_kernel_and_come_before_the_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[tuple[str, object]] = []
    for name in ("set_clock", "add_entropy", "set_machine_id", "set_hostname", "make_host_keys"):
        monkeypatch.setattr(become, name, lambda value, root, name=name: done.append((name, value)))
    document = {"host_keys": "new", "hostname": "a", "entropy": "AAEC", "clock_s": 1795661397.5}
    change(request({**document, "machine_id": MACHINE_ID}))
    assert done == [
        ("set_clock", 1795661397.5),
        ("add_entropy", b"\0\1\2"),
        ("set_machine_id", MACHINE_ID),
        ("set_hostname", "a"),
        ("make_host_keys", True),
    ]


BAD: list[tuple[str, object]] = [
    *(("hostname", value) for value in ("", "-a", "a-", "a.b", "a b", "$(x)", "a" * 64, "ä", 5, ["a"])),
    *(("clock_s", value) for value in (0, -1, True, "1", 1e11)),
    *(("entropy", value) for value in ("", "A", "AA=", "****", 5, "AAEC\n", "A" * 800)),
    *(("machine_id", value) for value in ("", "0" * 32, MACHINE_ID.upper(), MACHINE_ID + "0", 5)),
    *(("host_keys", value) for value in ("old", True, ["new"])),
    *(("network", value) for value in ("10.0.2.15/24", {}, {"address": "10.0.2.15/24", "x": 1})),
    *(
        ("network", {"address": value})
        for value in ("10.0.2.15", "10.0.2.15/33", "10.0.2.15/0", "10.0.2.15/08", "10.0.2.256/24", "::1/64", "/24", 5)
    ),
    *(("network", {"address": "10.0.2.15/24", "gateway": value}) for value in ("", "10.0.2", "a\nb", 5)),
    *(("network", {"address": "10.0.2.15/24", "dns": value}) for value in ("10.0.2.3", ["x"], ["1.1.1.1"] * 4, [5])),
    ("unknown", 1),
]


@pytest.mark.parametrize(("field", "value"), BAD)
def test_everything_is_checked_before_anything_is_changed(
    field: str, value: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("set_clock", "add_entropy", "set_machine_id", "set_hostname", "set_network", "make_host_keys"):
        monkeypatch.delattr(become, name)
    document = {"hostname": "fine", "clock_s": 5, field: value}
    with pytest.raises(Refused, match=field) as caught:
        change(request(document))
    assert caught.value.status == 400


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'"x"', b"\xff", b'{"clock_s":NaN}'])
def test_bodies_that_are_no_object(body: bytes) -> None:
    with pytest.raises(Refused):
        change(request(body))


INITS = {
    "systemd": ("usr/lib/systemd/system/opencode.service", "systemctl", "--no-block start opencode.service"),
    "openrc": ("etc/init.d/opencode", "rc-service", "opencode start"),
    "runit": ("etc/sv/opencode/run", "sv", "up /etc/sv/opencode"),
}


@pytest.mark.parametrize("init", INITS)
def test_password_is_kept_from_others_and_the_service_started(tmp_path: Path, init: str) -> None:
    service, asked, words = INITS[init]
    root = false_root(tmp_path / "root", init)
    write(root, service, "")
    program(root, asked)
    run(tmp_path, root, lambda machine: machine.give_opencode_password("s3cret-_.~"))
    file = root / "run/banger/opencode.env"
    assert file.read_text() == "OPENCODE_SERVER_PASSWORD=s3cret-_.~\n"
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.parent.stat().st_mode & 0o777 == 0o700
    assert told(root) == [f"{asked} {words}"]


def test_another_password_restarts_a_running_server_and_the_same_one_does_not(tmp_path: Path) -> None:
    root = false_root(tmp_path / "root", "openrc")
    write(root, "etc/init.d/opencode", "")
    write(root, "run/openrc/started/opencode", "")
    program(root, "rc-service")

    async def test(machine: Guest) -> None:
        for password in ("one", "one", "two"):
            await machine.give_opencode_password(password)

    run(tmp_path, root, test)
    assert told(root) == ["rc-service opencode restart", "rc-service opencode start", "rc-service opencode restart"]


def test_image_without_opencode_gets_no_password(tmp_path: Path) -> None:
    root = false_root(tmp_path / "root")
    with pytest.raises(Unsupported, match="no opencode service"):
        run(tmp_path, root, lambda machine: machine.give_opencode_password("secret"))
    assert not (root / "run/banger").exists()


def test_init_that_refuses_is_quoted(tmp_path: Path) -> None:
    root = false_root(tmp_path / "root", "systemd")
    write(root, "etc/systemd/system/opencode.service", "")
    program(root, "systemctl", "#!/bin/sh\necho 'Unit is masked.' >&2\nexit 1\n")
    with pytest.raises(GuestUnreachable, match="systemctl ended with status 1: Unit is masked"):
        run(tmp_path, root, lambda machine: machine.give_opencode_password("secret"))


@pytest.mark.parametrize("password", ["", "a b", "a\nb", "a'b", 'a"b', "$(x)", "a\\", "ä", "x" * 257])
def test_passwords_that_a_shell_or_systemd_would_read_otherwise_are_refused(tmp_path: Path, password: str) -> None:
    root = false_root(tmp_path / "root")
    with pytest.raises(Invalid, match="password"):
        run(tmp_path, root, lambda machine: machine.give_opencode_password(password))
