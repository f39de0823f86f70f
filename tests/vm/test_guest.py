"""The agent in a real guest: many commands at once, killed and back again, a new identity."""

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from banger.guest.channel import Guest
from banger.model.guest import IdentityChange
from tests.support.home import Home
from tests.vm.conftest import track

MACHINE_ID = "0123456789abcdef" * 2
AGENT = "guest/agent/[_]_main__.py"
_SLOWLY = "/run/systemd/system/banger-agent.service.d"


@pytest.fixture(scope="module")
def new(images: Path) -> Iterator[tuple[Home, int]]:
    """A banger of its own with a machine `a`, and how many bytes of disk that took right after its boot."""
    made = track(Home(images=images))
    made.run("vm", "create", "--name", "a", "--memory", "512M", "--no-opencode")
    yield made, int(made.json("vm", "show", "a")["disk_allocated_bytes"])
    made.close()


def test_fifty_commands_at_once_each_get_their_own_answer(home: Home, booted: str) -> None:
    children = [home.start("vm", "exec", booted, "--", "sh", "-c", f"sleep 1; echo {n}; exit {n}") for n in range(50)]
    for number, child in enumerate(children):
        out, err = child.communicate(timeout=120)
        assert (out.decode().strip(), child.returncode) == (str(number), number), err


def test_an_agent_that_is_killed_comes_back_and_health_says_so_in_between(home: Home, booted: str) -> None:
    # restarted slowly, so that there is an in-between to look at
    script = f"mkdir -p {_SLOWLY}; printf '[Service]\\nRestartSec=4s\\n' > {_SLOWLY}/slow.conf; systemctl daemon-reload"
    home.run("vm", "exec", booted, "--", "sh", "-c", script)
    try:
        before = _agent_pid(home, booted)
        home.run("vm", "exec", booted, "--", "kill", "-9", before, status=None)
        between = home.json("vm", "health", booted, status=6)
        (failed,) = [check for check in between["checks"] if not check["ok"]]
        assert (between["status"], failed["name"]) == ("unhealthy", "agent")
        assert failed["hint"]
        assert home.json("vm", "list")[0]["health"] == "unhealthy"
        home.run("vm", "health", booted, "--wait", "60")
        assert _agent_pid(home, booted) != before
        assert home.json("vm", "list")[0]["health"] == "healthy"
    finally:
        home.run("vm", "health", booted, "--wait", "60")
        home.run("vm", "exec", booted, "--", "sh", "-c", f"rm -r {_SLOWLY}; systemctl daemon-reload")


def _agent_pid(home: Home, name: str) -> str:
    return home.run("vm", "exec", name, "--", "pgrep", "-f", AGENT).stdout.decode().strip()


def test_the_agent_is_small(home: Home, booted: str) -> None:
    """15 MiB resident, after all that the other tests have asked of it, fifty commands at once among them."""
    children = [home.start("vm", "exec", booted, "--", "sleep", "1") for _ in range(50)]
    for child in children:
        child.communicate(timeout=120)
    home.run("vm", "ports", booted)
    status = home.run("vm", "exec", booted, "--", "cat", f"/proc/{_agent_pid(home, booted)}/status").stdout.decode()
    assert int(status.split("VmRSS:")[1].split()[0]) < 15 * 1024


def test_a_fresh_machine_takes_less_than_two_mebibytes_of_disk(new: tuple[Home, int]) -> None:
    _, allocated = new
    assert allocated < 2 << 20


def test_the_agent_is_there_before_sshd(new: tuple[Home, int]) -> None:
    """In a boot of its own: other tests kill the agent."""
    home, _ = new
    home.run("vm", "health", "a", "--wait", "60")
    script = f"for p in $(pgrep -f {AGENT}) $(pgrep -o -x sshd); do cut -d' ' -f22 /proc/$p/stat; done"
    agent, sshd = home.run("vm", "exec", "a", "--", "sh", "-c", script).stdout.decode().split()
    assert int(agent) < int(sshd)


def test_a_guest_takes_a_new_identity(new: tuple[Home, int]) -> None:
    """What snapshots will need: name, clock, randomness, machine id, host keys. The machine is of no use afterwards."""
    fresh, _ = new
    guest = Guest(Path(fresh.json("vm", "show", "a")["vsock_socket"]))
    fresh.run("vm", "ssh", "a", "true")  # sshd runs, its host key is there and pinned

    async def change() -> tuple[dict[str, object], dict[str, object]]:
        before = await guest.identity()
        change = IdentityChange(
            hostname="another", clock_s=time.time() + 1000, entropy=b"e" * 64, machine_id=MACHINE_ID, host_keys="new"
        )
        after = await guest.set_identity(change)
        return msgspec.to_builtins(before), msgspec.to_builtins(after)

    before, after = asyncio.run(change())
    assert (after["hostname"], after["machine_id"]) == ("another", MACHINE_ID)
    assert before["ssh_host_keys"] != after["ssh_host_keys"]
    hostname, now = fresh.run("vm", "exec", "a", "--", "sh", "-c", "hostname; date +%s").stdout.decode().split()
    assert hostname == "another"
    assert 900 < int(now) - time.time() < 1100
    # the pinned key no longer fits: ssh refuses, and says what to do
    assert b"known_hosts" in fresh.run("vm", "ssh", "a", "true", status=255).stderr
