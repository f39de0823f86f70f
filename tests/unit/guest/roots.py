"""A directory that stands for a guest's root, with programs that record what they were asked."""

from pathlib import Path

KEYGEN = """#!/bin/sh
echo "ssh-keygen $*" >>{root}/told
while [ "$1" != -f ]; do [ "$1" = -t ] && kind=$2; shift; done
echo "private $kind $$" >"$2"
echo "ssh-$kind AAAA$$ comment" >"$2.pub"
"""
RECORDER = """#!/bin/sh
echo "{name} $*" >>{root}/told
if [ "$2" = - ]; then while read -r line; do echo "$line"; done >>{root}/told; fi
"""


def false_root(root: Path, init: str = "openrc") -> Path:
    """What the agent needs of a guest: hostname, a network card, an SSH host key, an init of that kind."""
    for name in ("proc/sys/kernel", "etc/ssh", "usr/bin", "usr/sbin", "run", "sys/class/net/lo"):
        (root / name).mkdir(parents=True, exist_ok=True)
    (root / "proc/sys/kernel/hostname").write_text("")
    (root / "sys/class/net/lo/type").write_text("772\n")
    (root / "sys/class/net/eth0/device").mkdir(parents=True)
    (root / "sys/class/net/eth0/type").write_text("1\n")
    (root / "etc/ssh/ssh_host_ed25519_key").write_text("private old\n")
    (root / "etc/ssh/ssh_host_ed25519_key.pub").write_text("ssh-ed25519 AAAAold root@box\n")
    write_init(root, init)
    program(root, "ssh-keygen", KEYGEN)
    program(root, "ip", RECORDER)
    return root


def write_init(root: Path, init: str) -> None:
    """The directories by which an init is known, and one enabled service, sshd, which runs."""
    made = {
        "openrc": {"run/openrc/started/sshd": "", "etc/runlevels/default/sshd": ""},
        "systemd": {
            "run/systemd/system/x": "",
            "etc/systemd/system/multi-user.target.wants/sshd.service": "",
            "etc/systemd/system/sshd.service": "[Service]\nType=notify\n",
            "sys/fs/cgroup/system.slice/sshd.service/cgroup.procs": "12\n",
        },
        "runit": {"run/runit/x": "", "var/service/sshd/supervise/stat": "run\n"},
        "other": {},
    }[init]
    for name, text in made.items():
        write(root, name, text)


def write(root: Path, name: str, text: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def program(root: Path, name: str, text: str = RECORDER) -> Path:
    """A shell script below the root, executable."""
    path = root / "usr/bin" / name
    path.write_text(text.replace("{root}", str(root)).replace("{name}", name))
    path.chmod(0o755)
    return path


def told(root: Path) -> list[str]:
    """What the programs were asked, line by line."""
    path = root / "told"
    return path.read_text().splitlines() if path.exists() else []
