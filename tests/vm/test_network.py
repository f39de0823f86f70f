"""Reach, by packets seen: closed by default, the internet by a flag. banger runs in a namespace of the test's."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.home import Home
from tests.support.netns import HOST, INTERNET, PORT, Hosts, hosts
from tests.vm.conftest import track

# bash's own TCP, as the image has no HTTP client yet
GET = f"exec 3<>/dev/tcp/{INTERNET}/{PORT} && printf 'GET /answer HTTP/1.0\\r\\n\\r\\n' >&3 && cat <&3"


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    directory = tmp_path_factory.mktemp("internet")
    (directory / "answer").write_text("forty-two")
    with hosts(directory) as made:
        yield made


@pytest.fixture(scope="module")
def home(images: Path, network: Hosts) -> Iterator[Home]:
    made = track(Home(images=images, prefix=network.inside(network.host)))
    yield made
    made.close()


def test_with_nat_the_guest_reaches_a_server_beyond_its_host(home: Home, network: Hosts) -> None:
    home.run("vm", "create", "--name", "open", "--memory", "512M", "--nat")
    assert home.json("vm", "show", "open")["nat"] is True
    answer = home.run("vm", "exec", "open", "--timeout", "20", "--", "bash", "-c", GET).stdout
    assert answer.endswith(b"forty-two")
    # the server saw the host's address: the guest's own never leaves
    assert f"{HOST} - - " in network.requests.read_text()
    home.run("vm", "delete", "open", "--yes")


def test_without_nat_no_packet_leaves(home: Home, network: Hosts) -> None:
    home.run("vm", "create", "--name", "closed", "--memory", "512M")
    time.sleep(1)  # whatever the namespaces themselves still had to say
    before, asked = network.packets_at_internet(), network.requests.read_text()
    for command in (
        GET,
        f"exec 3<>/dev/udp/{INTERNET}/53 && echo x >&3",
        "exec 3<>/dev/tcp/10.0.2.2/22",
        "getent hosts example.org",
    ):
        home.run("vm", "exec", "closed", "--timeout", "5", "--", "bash", "-c", command, status=None)
    assert home.run("vm", "exec", "closed", "--timeout", "8", "--", "bash", "-c", GET, status=None).returncode != 0
    # address resolution between the two namespaces is not the guest's
    assert network.packets_at_internet() - before <= 2
    assert network.requests.read_text() == asked
    home.run("vm", "delete", "closed", "--yes")
