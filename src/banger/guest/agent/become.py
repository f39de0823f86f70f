"""The steps of POST /identity. Each takes its checked value and the root below which files are; raises OSError
or `ProgramFailed`.

With a root that is not the guest's own the kernel's clock and random numbers are left alone.
"""

import os

from banger.guest.agent.health import read_text
from banger.guest.agent.identity import Network
from banger.guest.agent.programs import kill_by_pid_file, run
from banger.guest.agent.rootfs import names_in, read_all, write_whole
from banger.guest.agent.signals import SIGHUP

IP_SECONDS = 20.0
KEYGEN_SECONDS = 120.0  # an RSA key on an emulated processor

_RNDADDENTROPY, _RNDRESEEDCRNG = 0x40085203, 0x5207  # <linux/random.h>
_KINDS = ("ed25519", "ecdsa", "rsa")
_LOOPBACK = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"


def set_clock(seconds: float, root: str) -> None:
    """Set the wall clock."""
    from time import CLOCK_REALTIME, clock_settime

    if not root:
        clock_settime(CLOCK_REALTIME, seconds)


def add_entropy(data: bytes, root: str) -> None:
    """Credit the bytes to the kernel's random numbers and let it use them from now on (random(4))."""
    from fcntl import ioctl
    from struct import pack

    if root:
        return
    fd = os.open("/dev/urandom", os.O_WRONLY | os.O_CLOEXEC)
    try:
        ioctl(fd, _RNDADDENTROPY, pack("ii", 8 * len(data), len(data)) + data)
        ioctl(fd, _RNDRESEEDCRNG)
    finally:
        os.close(fd)


def set_machine_id(value: str, root: str) -> None:
    """Write machine-id(5), and D-Bus's copy where it is a file of its own."""
    write_whole(root + "/etc/machine-id", value.encode() + b"\n", 0o444)
    copy = root + "/var/lib/dbus/machine-id"
    if os.path.isfile(copy) and not os.path.islink(copy):
        write_whole(copy, value.encode() + b"\n", 0o644)


def set_hostname(name: str, root: str) -> None:
    """Tell the kernel, /etc/hostname, and the line of 127.0.1.1 in /etc/hosts."""
    fd = os.open(root + "/proc/sys/kernel/hostname", os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, name.encode())
    finally:
        os.close(fd)
    write_whole(root + "/etc/hostname", name.encode() + b"\n", 0o644)
    old = read_all(root + "/etc/hosts", 1 << 20).decode("utf-8", "surrogateescape") or _LOOPBACK
    kept = [line for line in old.splitlines() if line.split()[:1] != ["127.0.1.1"]]
    text = "\n".join([*kept[:1], f"127.0.1.1\t{name}", *kept[1:]]) + "\n"
    write_whole(root + "/etc/hosts", text.encode("utf-8", "surrogateescape"), 0o644)


def set_network(network: Network, root: str) -> None:
    """Give the network card the address in place of those it has, the default route, and the DNS servers."""
    card = _card(root)
    lines = [
        "link set lo up",
        f"address flush dev {card} scope global",
        f"address replace {network.address} dev {card}",
    ]
    lines.append(f"link set {card} up")
    if network.gateway is not None:
        lines.append(f"route replace default via {network.gateway} dev {card}")
    run(["ip", "-batch", "-"], IP_SECONDS, root=root, stdin="\n".join([*lines, ""]).encode())
    if network.dns is None:
        return
    path = root + "/etc/resolv.conf"  # where it is a link to a resolver's own file, the rename replaces the link
    write_whole(path, "".join(f"nameserver {server}\n" for server in network.dns).encode(), 0o644)


def _card(root: str) -> str:
    """The first Ethernet device with hardware behind it, as banger-setup finds it."""
    folder = root + "/sys/class/net/"
    for name in names_in(folder):
        if os.path.exists(f"{folder}{name}/device") and read_text(f"{folder}{name}/type") == "1":
            return name
    raise OSError("there is no network card")


def make_host_keys(_new: bool, root: str) -> None:
    """Make new SSH host keys of the kinds there are, ed25519 if none, and let sshd read them."""
    folder = root + "/etc/ssh/"
    kinds = [kind for kind in _KINDS if os.path.exists(f"{folder}ssh_host_{kind}_key")] or ["ed25519"]
    made = []
    try:
        for kind in kinds:
            temporary = f"{folder}.banger-{kind}-{os.getpid()}"
            made.append((temporary, f"{folder}ssh_host_{kind}_key"))
            _forget(temporary)
            argv = ["ssh-keygen", "-q", "-t", kind, "-N", "", "-C", "", "-f", temporary]
            if not run(argv, KEYGEN_SECONDS, root=root):
                raise OSError(f"ssh-keygen did not end within {KEYGEN_SECONDS:g} s")
        for temporary, final in made:
            os.rename(temporary + ".pub", final + ".pub")
            os.rename(temporary, final)
    finally:
        for temporary, _final in made:
            _forget(temporary)
    # It executes itself again: sessions go on, new ones see the new keys (sshd(8), SIGHUP).
    kill_by_pid_file(root, "/run/sshd.pid", "sshd", SIGHUP)


def _forget(path: str) -> None:
    for name in (path, path + ".pub"):
        try:
            os.unlink(name)
        except FileNotFoundError:
            continue
