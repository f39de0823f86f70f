"""Two hosts of the test's own: `host`, where banger runs, and `internet`, a server beyond it."""

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.support import leaks

# TEST-NET-3, RFC 5737
HOST, INTERNET = "203.0.113.1", "203.0.113.2"
PORT = 8080


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


class Hosts:
    """The names of both namespaces, and what the internet's server was asked."""

    def __init__(self, directory: Path) -> None:
        self.host = f"{leaks.prefix()}host"
        self.internet = f"{leaks.prefix()}net"
        self.requests = directory / "requests.log"

    def inside(self, namespace: str) -> tuple[str, ...]:
        return ("ip", "netns", "exec", namespace)

    def packets_at_internet(self) -> int:
        """How many packets its interface has received."""
        asked = [*self.inside(self.internet), "cat", "/sys/class/net/inet/statistics/rx_packets"]
        return int(subprocess.run(asked, check=True, capture_output=True).stdout)


@contextlib.contextmanager
def hosts(directory: Path) -> Iterator[Hosts]:
    """Both namespaces, joined by a veth pair, with an HTTP server in the internet; all gone afterwards."""
    made = Hosts(directory)
    with contextlib.ExitStack() as undo:
        for name in (made.host, made.internet):
            ip("netns", "add", name)
            undo.callback(ip, "netns", "del", name)
            ip("-n", name, "link", "set", "lo", "up")
        ip("link", "add", "up0", "netns", made.host, "type", "veth", "peer", "inet", "netns", made.internet)
        for name, link, address in ((made.host, "up0", HOST), (made.internet, "inet", INTERNET)):
            ip("-n", name, "address", "add", f"{address}/24", "dev", link)
            ip("-n", name, "link", "set", link, "up")
        ip("-n", made.host, "route", "add", "default", "via", INTERNET)
        with made.requests.open("wb") as log:
            server = subprocess.Popen(
                [*made.inside(made.internet), sys.executable, "-u", "-m", "http.server", str(PORT), "--bind", INTERNET],
                cwd=directory,
                stdout=subprocess.DEVNULL,
                stderr=log,
            )
        undo.callback(server.wait, 10)
        undo.callback(server.kill)
        yield made
