"""What goes into the image: the listing, and the setup script with a false root."""

import asyncio
import re
import sys
from pathlib import Path

import pytest

from banger.guest.bundle import Init, agent_files, links
from banger.system.process import run

_DEADLINE = 20.0
INITS: tuple[Init, ...] = ("systemd", "openrc", "runit")
SETUP = "usr/lib/banger/banger-setup"


STARTS = {
    "systemd": "etc/systemd/system/banger-agent.service",
    "openrc": "etc/init.d/banger-agent",
    "runit": "etc/sv/banger-agent/run",
}


def install(root: Path, init: Init) -> None:
    for name, (content, mode) in agent_files(init).items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        path.chmod(mode)


@pytest.mark.parametrize("init", INITS)
def test_installed_agent_starts_from_where_its_service_says(tmp_path: Path, init: Init) -> None:
    install(tmp_path, init)
    match = re.search(r"-I -S (/[^\s\"]+)", (tmp_path / STARTS[init]).read_text())
    assert match is not None
    argv = [sys.executable, "-I", "-S", f"{tmp_path}{match[1]}", "--wrong"]
    done = asyncio.run(run(argv, timeout=_DEADLINE, check=False))
    assert b"usage: banger-agent" in done.stderr


@pytest.mark.parametrize("init", INITS)
def test_paths_stay_below_the_root_and_do_not_collide(init: Init) -> None:
    paths = [*agent_files(init), *links(init)]
    assert len(paths) == len(set(paths))
    for path in paths:
        assert not path.startswith("/")
        assert ".." not in Path(path).parts


@pytest.mark.parametrize("init", INITS)
def test_agent_brings_every_module_that_it_imports(init: Init) -> None:
    """Also those that a handler imports when it is first used."""
    brought = {path: content for path, (content, _) in agent_files(init).items() if path.endswith(".py")}
    for path, content in brought.items():
        for name in re.findall(r"^\s*(?:from|import) (banger[.\w]*)", content.decode(), re.MULTILINE):
            place = f"usr/lib/banger/{name.replace('.', '/')}"
            assert {f"{place}.py", f"{place}/__init__.py"} & set(brought), f"{path} imports {name}"


@pytest.mark.parametrize("init", ["openrc", "runit"])
def test_every_service_that_is_enabled_is_installed(init: Init) -> None:
    installed = {f"/{path}" for path in agent_files(init)}
    for path, target in links(init).items():
        if not path.endswith("/supervise"):
            assert {target, f"{target}/run"} & installed, path


@pytest.mark.parametrize("init", INITS)
def test_scripts_are_executable_and_a_shell_can_read_them(tmp_path: Path, init: Init) -> None:
    install(tmp_path, init)
    for name, (content, mode) in agent_files(init).items():
        assert (mode == 0o755) == content.startswith(b"#!"), name
        if b"sh\n" in content[:20] or b"openrc-run\n" in content[:30] or name.endswith(".sh"):
            asyncio.run(run(["/bin/sh", "-n", str(tmp_path / name)], timeout=_DEADLINE))


@pytest.mark.parametrize("path", ["etc/init.d/sshd", "etc/sv/sshd/run"])
def test_ssh_server_is_told_the_same_by_every_init(path: str) -> None:
    """Not every distribution's sshd_config includes the folder that our settings are in."""
    settings = agent_files()["etc/ssh/sshd_config.d/banger.conf"][0].decode().splitlines()
    text = (agent_files("openrc") | agent_files("runit"))[path][0].decode()
    assert re.findall(r"-o (\S+?)[\s\"]", text) == [line.replace(" ", "=", 1) for line in settings]


def test_every_unit_that_is_enabled_or_waited_for_is_installed() -> None:
    names = {Path(path).name for path in agent_files()} | {"ssh.service", "multi-user.target"}
    for path, target in links().items():
        if target != "/dev/null":
            assert Path(target).name in names, path


def setup(root: Path, cmdline: str, *, nic: str | None = "eth0") -> tuple[str, str]:
    """Run banger-setup below `root` with an `ip` that records: what ip was told, and stderr."""
    for name in ("proc/sys/kernel", "etc", "sys/class/net/lo", "bin"):
        (root / name).mkdir(parents=True, exist_ok=True)
    (root / "sys/class/net/lo/type").write_text("772\n")
    if nic is not None:
        (root / f"sys/class/net/{nic}/device").mkdir(parents=True)
        (root / f"sys/class/net/{nic}/type").write_text("1\n")
    (root / "proc/cmdline").write_text(cmdline + "\n")
    (root / "etc/resolv.conf").unlink(missing_ok=True)
    (root / "etc/resolv.conf").symlink_to("../run/stub")
    ip = root / "bin/ip"
    ip.write_text(f'#!/bin/sh\necho "ip $*" >>{root}/told\nwhile read -r line; do echo "$line"; done >>{root}/told\n')
    ip.chmod(0o755)
    script = root / "banger-setup"
    script.write_bytes(agent_files()[SETUP][0])
    argv = ["/bin/sh", str(script), str(root)]
    done = asyncio.run(run(argv, timeout=_DEADLINE, env={"PATH": f"{root}/bin:/usr/bin:/bin"}))
    told = root / "told"
    return (told.read_text() if told.exists() else ""), done.stderr.decode()


def test_setup_applies_every_parameter(tmp_path: Path) -> None:
    told, errors = setup(
        tmp_path,
        "console=ttyS0 banger.hostname=box-1 banger.ip=10.0.2.15/24 banger.gateway=10.0.2.2 "
        "banger.dns=10.0.2.3,192.0.2.1 quiet",
    )
    assert errors == ""
    assert told.splitlines() == [
        "ip -force -batch -",
        "link set lo up",
        "address replace 10.0.2.15/24 dev eth0",
        "link set eth0 up",
        "route replace default via 10.0.2.2 dev eth0",
    ]
    assert (tmp_path / "proc/sys/kernel/hostname").read_text() == "box-1\n"
    assert (tmp_path / "etc/hostname").read_text() == "box-1\n"
    assert "127.0.1.1\tbox-1\n" in (tmp_path / "etc/hosts").read_text()
    assert (tmp_path / "etc/resolv.conf").read_text() == "nameserver 10.0.2.3\nnameserver 192.0.2.1\n"
    assert not (tmp_path / "run/stub").exists()


def test_setup_without_parameters_or_card_does_nothing(tmp_path: Path) -> None:
    told, errors = setup(tmp_path, "console=ttyS0 quiet")
    assert (told, errors) == ("", "")
    assert not (tmp_path / "etc/hostname").exists()
    (tmp_path / "other").mkdir()
    told, errors = setup(tmp_path / "other", "banger.ip=10.0.2.15/24", nic=None)
    assert (told, errors) == ("", "")


@pytest.mark.parametrize(
    "word",
    [
        "banger.hostname=",
        "banger.hostname=-a",
        "banger.hostname=a.b",
        "banger.hostname=$(reboot)",
        "banger.hostname=*",
        "banger.hostname=" + "a" * 64,
        "banger.ip=10.0.2.15",
        "banger.ip=10.0.2.15/33",
        "banger.ip=10.0.2.15/",
        "banger.ip=10.0.2.15/08",
        "banger.ip=10.0.2/24",
        "banger.ip=10.0.2.256/24",
        "banger.ip=10.0.2.1.5/24",
        "banger.ip=10.0..15/24",
        "banger.ip=10.0.2.15/24/1",
        "banger.ip=::1/64",
        "banger.gateway=10.0.2",
        "banger.gateway=10.0.2.2;reboot",
        "banger.dns=10.0.2.3,",
        "banger.dns=10.0.2.3,nonsense",
        "banger.dns=1.1.1.1,1.1.1.2,1.1.1.3,1.1.1.4",
    ],
)
def test_setup_leaves_malformed_parameters_alone(tmp_path: Path, word: str) -> None:
    told, errors = setup(tmp_path, f"quiet {word} ro")
    assert told == ""
    assert "banger-setup: bad " in errors
    assert not (tmp_path / "proc/sys/kernel/hostname").exists()
    assert (tmp_path / "etc/resolv.conf").is_symlink()
