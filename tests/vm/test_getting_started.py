"""Firecracker's own introduction, docs/getting-started.md there, with banger-vmm in the place of ./firecracker.

The two scripts below are the page's two terminals, in its words. They deviate where this comment says so:

* `sudo` is a function that just runs its words: the tests are run by root. `./firecracker` is a function that runs
  banger-vmm, and lets it take the shell's place as it is the terminal's last command.
* The socket is in the test's directory instead of /tmp, where other programs' would be.
* Everything happens in a network namespace of the test's that leads nowhere, so the lines for internet access
  (iptables, and the name of the host's interface for them) are left out.
* The kernel is Debian's, whose drivers are modules: /boot-source names an initramfs too.
* The guest has no fcnet-setup.sh that would derive its address from its MAC address; it takes the same address from
  `banger.ip=` in the boot arguments. Route and resolver come by the page's own ssh commands.
* The key is put into the root with debugfs, as there is no directory to build the root from.
* An emulated guest is not there after `sleep 2s`, so ssh keeps trying, and asks nobody about the new host key.
* Instead of a person's, the last session's command is typed by the script: `reboot`.
* The page's branch for aarch64 is left out.
"""

import contextlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import leaks
from tests.support.engine import VMM
from tests.support.netns import ip
from tests.support.terminal import Terminal

PROGRAMS = ("curl", "debugfs", "ip", "setsid", "ssh", "ssh-keygen")
BOOT_S = 120.0
OURS = """\
sudo() { "$@"; }
ssh() {
    command ssh -F none -o ConnectionAttempts=60 -o ConnectTimeout=30 -o UserKnownHostsFile=./known_hosts \\
        -o StrictHostKeyChecking=accept-new -o LogLevel=ERROR "$@" < /dev/null
}
API_SOCKET="$PWD/firecracker.socket"
"""
FIRST_TERMINAL = f"""\
sudo() {{ [ "$1" != "./firecracker" ] || {{ shift; exec {VMM} "$@"; }}; "$@"; }}
API_SOCKET="$PWD/firecracker.socket"

# Remove API unix socket
sudo rm -f $API_SOCKET

# Run firecracker
"""
BY_API = 'sudo ./firecracker --api-sock "${API_SOCKET}" --enable-pci\n'
BY_FILE = 'sudo ./firecracker --api-sock "${API_SOCKET}" --config-file vm_config.json\n'
SECOND_TERMINAL = (
    OURS
    + r"""
TAP_DEV="tap0"
TAP_IP="172.16.0.1"
MASK_SHORT="/30"

# Setup network interface
sudo ip link del "$TAP_DEV" 2> /dev/null || true
sudo ip tuntap add dev "$TAP_DEV" mode tap
sudo ip addr add "${TAP_IP}${MASK_SHORT}" dev "$TAP_DEV"
sudo ip link set dev "$TAP_DEV" up

# Enable ip forwarding
sudo sh -c "echo 1 > /proc/sys/net/ipv4/ip_forward"

LOGFILE="./firecracker.log"

# Set log file
sudo curl -X PUT --unix-socket "${API_SOCKET}" \
    --data "{
        \"log_path\": \"${LOGFILE}\",
        \"level\": \"Debug\",
        \"show_level\": true,
        \"show_log_origin\": true
    }" \
    "http://localhost/logger"

KERNEL="./$(ls vmlinux* | tail -1)"
INITRD="./$(ls *.cpio | tail -1)"
KERNEL_BOOT_ARGS="console=ttyS0 reboot=k panic=1 banger.ip=172.16.0.2/30"

# Set boot source
sudo curl -X PUT --unix-socket "${API_SOCKET}" \
    --data "{
        \"kernel_image_path\": \"${KERNEL}\",
        \"initrd_path\": \"${INITRD}\",
        \"boot_args\": \"${KERNEL_BOOT_ARGS}\"
    }" \
    "http://localhost/boot-source"

ROOTFS="./$(ls *.ext4 | tail -1)"

# Set rootfs
sudo curl -X PUT --unix-socket "${API_SOCKET}" \
    --data "{
        \"drive_id\": \"rootfs\",
        \"path_on_host\": \"${ROOTFS}\",
        \"is_root_device\": true,
        \"is_read_only\": false
    }" \
    "http://localhost/drives/rootfs"

FC_MAC="06:00:AC:10:00:02"

# Set network interface
sudo curl -X PUT --unix-socket "${API_SOCKET}" \
    --data "{
        \"iface_id\": \"net1\",
        \"guest_mac\": \"$FC_MAC\",
        \"host_dev_name\": \"$TAP_DEV\"
    }" \
    "http://localhost/network-interfaces/net1"

# API requests are handled asynchronously, it is important the configuration is
# set, before `InstanceStart`.
sleep 0.015s

# Start microVM
sudo curl -X PUT --unix-socket "${API_SOCKET}" \
    --data "{
        \"action_type\": \"InstanceStart\"
    }" \
    "http://localhost/actions"

# API requests are handled asynchronously, it is important the microVM has been
# started before we attempt to SSH into it.
sleep 2s

KEY_NAME=./$(ls *.id_rsa | tail -1)

# Setup internet access in the guest
ssh -i $KEY_NAME root@172.16.0.2  "ip route add default via 172.16.0.1 dev eth0"

# Setup DNS resolution in the guest
ssh -i $KEY_NAME root@172.16.0.2  "echo 'nameserver 8.8.8.8' > /etc/resolv.conf"

# glibc resolves A/AAAA in parallel; on an IPv6-connected host the AAAA query
# can stall on host NAT, adding seconds per lookup.
ssh -i $KEY_NAME root@172.16.0.2  "echo 'options single-request-reopen' >> /etc/resolv.conf"
"""
)
LAST_SESSION = r"""
KEY_NAME=./$(ls *.id_rsa | tail -1)
# SSH into the microVM
"""
ASK = "cat /etc/resolv.conf; ip route show default; cat /sys/class/net/eth0/address; stat -fc %T /; uname -r"


class Host:
    """A directory with what the page has downloaded, and a network namespace; all of it gone after `close`."""

    def __init__(self, image: Path) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix=leaks.prefix()))
        self.namespace = f"{leaks.prefix()}start"
        self.image = image
        self.terminal: Terminal | None = None
        ip("netns", "add", self.namespace)
        ip("-n", self.namespace, "link", "set", "lo", "up")

    def download(self) -> None:
        """Kernel, initramfs, root with a new key in it; the page's names, but for the distribution's."""
        release = json.loads((self.image / "image.json").read_text())["kernel_release"]
        (self.directory / f"vmlinux-{release}").symlink_to(self.image / "vmlinux")
        (self.directory / "initramfs.cpio").symlink_to(self.image / "initramfs.cpio")
        patch = "rm /root/.ssh/authorized_keys\nwrite id_rsa.pub /root/.ssh/authorized_keys\n"
        patch += "sif /root/.ssh/authorized_keys mode 0100600\n"
        for words, asked in (
            (["cp", "--reflink=auto", "--sparse=always", str(self.image / "root.ext4"), "debian.ext4"], ""),
            (["chmod", "600", "debian.ext4"], ""),
            (["ssh-keygen", "-q", "-f", "id_rsa", "-N", ""], ""),
            (["debugfs", "-w", "-f", "-", "debian.ext4"], patch),
            (["mv", "id_rsa", "debian.id_rsa"], ""),
        ):
            subprocess.run(words, cwd=self.directory, input=asked.encode(), check=True, capture_output=True)

    def inside(self, *words: str) -> tuple[str, ...]:
        return ("ip", "netns", "exec", self.namespace, *words)

    def first_terminal(self, last: str) -> Terminal:
        """Run the script in a terminal of its own, until the API answers."""
        self.terminal = Terminal(self.inside("sh", "-c", FIRST_TERMINAL + last), self.directory)
        self.terminal.wait((self.directory / "firecracker.socket").exists, 20)
        return self.terminal

    def second_terminal(self, script: str) -> str:
        """What it prints; a fault that curl printed is a failure, though curl does not call it one."""
        done = subprocess.run(
            self.inside("sh", "-euc", script), cwd=self.directory, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
        assert "fault_message" not in done.stdout, done.stdout
        return done.stdout

    def curl(self, path: str, *words: str) -> Any:
        """The page's curl, with an answer."""
        command = f'{OURS}\nsudo curl -s --unix-socket ${{API_SOCKET}} "$@" http://localhost{path}'
        done = subprocess.run(
            self.inside("sh", "-euc", command, "curl", *words), cwd=self.directory, capture_output=True, check=True
        )
        return json.loads(done.stdout) if done.stdout else None

    def close(self) -> None:
        with contextlib.ExitStack() as undo:
            undo.callback(shutil.rmtree, self.directory)
            undo.callback(ip, "netns", "del", self.namespace)
            if self.terminal is not None:
                self.terminal.close()


@pytest.fixture
def host(images: Path) -> Iterator[Host]:
    if os.geteuid() != 0:
        pytest.skip("making a network namespace and a tap needs root")
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if missing:
        pytest.skip(f"the page's commands are not installed: {', '.join(missing)}")
    made = Host(images / "debian")
    try:
        made.download()
        yield made
    finally:
        made.close()


def test_the_page_from_the_api_to_ssh_and_reboot(host: Host) -> None:
    terminal = host.first_terminal(BY_API)
    host.second_terminal(SECOND_TERMINAL)
    told = host.second_terminal(f'{OURS}{LAST_SESSION}ssh -i $KEY_NAME root@172.16.0.2 "{ASK}"').splitlines()
    assert told[:2] == ["nameserver 8.8.8.8", "options single-request-reopen"]
    assert told[2].split()[:5] == ["default", "via", "172.16.0.1", "dev", "eth0"]
    assert told[3:5] == ["06:00:ac:10:00:02", "ext2/ext3"]
    assert (host.directory / f"vmlinux-{told[5]}").exists()
    assert host.curl("/machine-config") | {"vcpu_count": 1, "mem_size_mib": 128} == host.curl("/machine-config")
    assert "Linux version" in terminal.shown
    # sshd may end before it has told the status of a command that ends it
    host.second_terminal(f"{OURS}{LAST_SESSION}ssh -i $KEY_NAME root@172.16.0.2 reboot || true")
    assert terminal.end(BOOT_S) == 0
    assert terminal.as_before
    assert "reboot: Restarting system" in terminal.shown
    assert not (host.directory / "firecracker.socket").exists()
    log = (host.directory / "firecracker.log").read_text()
    assert ":INFO:server.py:" in log
    assert "PUT /actions -> 204" in log


def test_the_page_without_api_requests(host: Host) -> None:
    """Its example is tests/framework/vm_config.json there; names of files are ours, and there is an initramfs."""
    (host.directory / "vm_config.json").write_text(json.dumps(vm_config(host)))
    terminal = host.first_terminal(BY_FILE)
    # the earliest request is answered when the machine runs, and must not start a second one
    again = host.curl("/actions", "-X", "PUT", "--data", '{"action_type": "InstanceStart"}')
    assert "after starting the microVM" in again["fault_message"]
    assert not terminal.as_before, "every key is the guest's"
    assert host.curl("/")["state"] == "Running"
    terminal.wait(lambda: "Multi-User System" in terminal.shown, BOOT_S)
    shown = host.curl("/vm/config")
    assert shown["machine-config"]["mem_size_mib"] == 1024
    assert [drive["path_on_host"] for drive in shown["drives"]] == ["debian.ext4"]
    for state in ("Paused", "Resumed"):
        assert host.curl("/vm", "-X", "PATCH", "--data", json.dumps({"state": state})) is None
    assert host.curl("/")["state"] == "Running"
    assert host.curl("/actions", "-X", "PUT", "--data", '{"action_type": "SendCtrlAltDel"}') is None
    assert terminal.end(BOOT_S) == 0
    assert terminal.as_before
    assert not (host.directory / "firecracker.socket").exists()


def vm_config(host: Host) -> dict[str, Any]:
    return {
        "boot-source": {
            "kernel_image_path": next(host.directory.glob("vmlinux*")).name,
            "boot_args": "console=ttyS0 reboot=k panic=1",
            "initrd_path": "initramfs.cpio",
        },
        "drives": [
            {
                "drive_id": "rootfs",
                "partuuid": None,
                "is_root_device": True,
                "cache_type": "Unsafe",
                "is_read_only": False,
                "path_on_host": "debian.ext4",
                "io_engine": "Sync",
                "rate_limiter": None,
                "socket": None,
            }
        ],
        "machine-config": {
            "vcpu_count": 2,
            "mem_size_mib": 1024,
            "smt": False,
            "track_dirty_pages": False,
            "huge_pages": "None",
        },
        "cpu-config": None,
        "balloon": None,
        "network-interfaces": [],
        "vsock": None,
        "logger": None,
        "metrics": None,
        "mmds-config": None,
        "entropy": None,
        "pmem": [],
        "memory-hotplug": None,
    }
