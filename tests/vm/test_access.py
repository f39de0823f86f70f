"""Reaching a guest from the host without a network: ssh, its configuration, forwards and ports."""

import hashlib
import http.client
import json
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.home import Home

LIMIT_S = 120.0
WEB = 8000
PAGES = 10
STOP = f"pkill -f 'http[.]server {WEB}'"  # the brackets keep it from finding its own shell
SERVE = f"cd /srv/pages && exec setsid python3 -m http.server {WEB} --bind 127.0.0.1 </dev/null >/dev/null 2>&1 &"


def in_guest(home: Home, name: str, script: str) -> bytes:
    return home.run("vm", "exec", name, "--", "sh", "-c", script).stdout


@pytest.fixture(scope="module")
def pages(home: Home, booted: str) -> Iterator[dict[str, str]]:
    """An HTTP server in the guest; its pages by path, with their digests."""
    make = "for n in $(seq {PAGES}); do head -c ${n}0000 /dev/urandom > $n; done".replace("{PAGES}", str(PAGES))
    told = in_guest(home, booted, f"mkdir -p /srv/pages && cd /srv/pages && {make}; sha256sum *")
    in_guest(home, booted, SERVE)
    home.run("vm", "proxy", booted, "--port", str(WEB), "--wait", f"{LIMIT_S:g}", input=b"")
    yield {f"/{name}": digest for digest, name in (line.split() for line in told.decode().splitlines())}
    in_guest(home, booted, f"{STOP}; rm -r /srv/pages")


def test_ssh_is_the_guests_shell(home: Home, booted: str) -> None:
    home.run("vm", "ssh", booted, "true")
    assert home.run("vm", "ssh", booted, "exit 7", status=7).stderr == b""
    assert home.run("vm", "ssh", booted, "cat; hostname", input=b"in\n").stdout == f"in\n{booted}\n".encode()
    assert home.run("vm", "ssh", booted, "echo 'two  words' \"$HOME\"").stdout == b"two  words /root\n"
    assert home.run("vm", "ssh", booted, "--", "-o", "SetEnv=LC_ANSWER=42", "true").returncode == 0


def test_a_wrong_pinned_key_is_refused_and_explained(home: Home, booted: str) -> None:
    home.run("vm", "ssh-config", booted)
    vm = home.json("vm", "show", booted)
    known = home.state / "vms" / vm["id"] / "known_hosts"
    pinned = known.read_text()
    assert known.stat().st_mode & 0o777 == 0o600
    key = home.root / "other"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    known.write_text(f"banger-{vm['id']} {key.with_suffix('.pub').read_text()}")
    try:
        done = home.run("vm", "ssh", booted, "echo", "let", "in", status=255)
        assert done.stdout == b""
        assert b"REMOTE HOST IDENTIFICATION HAS CHANGED" in done.stderr
        said = f"banger: {booted} has other SSH host keys than at the first login; if you changed them, rm {known}\n"
        assert done.stderr.decode().endswith(said)
    finally:
        known.unlink()
    home.run("vm", "ssh", booted, "true")
    assert known.read_text() == pinned


def test_the_block_serves_scp_and_ssh(home: Home, booted: str, tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.write_bytes(home.run("vm", "ssh-config", booted).stdout)
    (tmp_path / "sent").write_bytes(os.urandom(300_000))
    # as from an editor: not one of our variables is set
    env = {name: value for name, value in os.environ.items() if not name.startswith("BANGER_")}

    def run(*words: str) -> bytes:
        return subprocess.run(words, env=env, check=True, capture_output=True, timeout=LIMIT_S).stdout

    run("scp", "-q", "-F", str(config), str(tmp_path / "sent"), f"{booted}.banger:/tmp/sent")
    run("scp", "-q", "-F", str(config), f"banger-{booted}:/tmp/sent", str(tmp_path / "back"))
    assert (tmp_path / "back").read_bytes() == (tmp_path / "sent").read_bytes()
    assert run("ssh", "-F", str(config), f"{booted}.banger", "rm /tmp/sent; hostname") == f"{booted}\n".encode()


def test_ports_shows_sshd_and_the_page_server(home: Home, booted: str, pages: dict[str, str]) -> None:
    listed = {port["port"]: port for port in home.json("vm", "ports", booted)}
    assert (listed[22]["process"], listed[22]["protocol"]) == ("sshd", "tcp")
    assert listed[WEB]["url"] == f"http://localhost:{WEB}/"
    assert listed[WEB]["process"] == "python3"
    assert listed[WEB]["addresses"] == ["127.0.0.1"]
    table = home.run("vm", "ports", booted).stdout.decode()
    assert f"banger vm forward {booted} {WEB}, then open http://localhost:{WEB}/" in table


@contextmanager
def forwarding(home: Home, name: str, word: str) -> Iterator[tuple[str, "subprocess.Popen[bytes]"]]:
    child = home.start("vm", "forward", name, word, "--json")
    try:
        assert child.stdout is not None
        text = b""
        while not text.endswith(b"\n}\n"):
            text += os.read(child.stdout.fileno(), 4096)
        yield json.loads(text)["forwards"][0]["local"], child
    finally:
        if child.poll() is None:
            child.terminate()
        child.communicate(timeout=LIMIT_S)


def fetch(local: str, path: str, forward: "subprocess.Popen[bytes]") -> str:
    """The digest of a page, as a client gets it that tries again while the server is away."""
    deadline = time.monotonic() + LIMIT_S
    while True:
        connection = http.client.HTTPConnection(local, timeout=LIMIT_S)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            body = answer.read()
            assert answer.status == 200
            return hashlib.sha256(body).hexdigest()
        except (OSError, http.client.HTTPException):
            assert time.monotonic() < deadline
            assert forward.poll() is None
            time.sleep(0.1)
        finally:
            connection.close()


def test_a_forward_carries_a_thousand_requests_through_a_restart(
    home: Home, booted: str, pages: dict[str, str]
) -> None:
    wrong: list[str] = []
    done = threading.Semaphore(0)

    def client(local: str, forward: "subprocess.Popen[bytes]", share: int) -> None:
        for number in range(share):
            path = f"/{number % PAGES + 1}"
            if fetch(local, path, forward) != pages[path]:
                wrong.append(path)
            done.release()

    with forwarding(home, booted, f"0:{WEB}") as (local, child):
        threads = [threading.Thread(target=client, args=(local, child, 125)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for _ in range(300):
            assert done.acquire(timeout=LIMIT_S)
        in_guest(home, booted, STOP)
        in_guest(home, booted, SERVE)
        for thread in threads:
            thread.join(4 * LIMIT_S)
        assert not any(thread.is_alive() for thread in threads)
        assert wrong == []
        home.run("daemon", "stop")  # the forward needs none
        assert fetch(local, "/1", child) == pages["/1"]
        child.terminate()
        totals = child.communicate(timeout=LIMIT_S)[1].decode()
        assert child.returncode == 0
        assert "connections" in totals.splitlines()[-1]
