"""banger vm ports."""

import json
from pathlib import Path

from tests.unit.cli.daemon import daemon
from tests.unit.client import fake

SSHD = {"port": 22, "protocol": "tcp", "addresses": ["0.0.0.0", "::"], "pid": 193, "process": "sshd", "url": None}
WEB = {
    "port": 8000,
    "protocol": "tcp",
    "addresses": ["127.0.0.1"],
    "pid": None,
    "process": "\x1b[31mpy",
    "url": "http://localhost:8000/",
}
TIME = {"port": 123, "protocol": "udp", "addresses": ["::"], "pid": 7, "process": "", "url": None}


def test_the_table_the_hint_and_the_list(tmp_path: Path) -> None:
    with daemon(tmp_path) as ours, fake.guest(tmp_path) as guest:
        ours.tell(guest.vm)
        guest.documents["/ports"] = {"ports": [WEB, TIME, SSHD]}
        done = ours.run("vm", "ports", "demo")
        assert done.returncode == 0, done.stderr
        assert done.stdout.decode() == (
            "PORT  PROTO  ADDRESS      PROCESS  PID  URL\n"
            "22    tcp    0.0.0.0, ::  sshd     193\n"
            "123   udp    ::           -        7\n"
            "8000  tcp    127.0.0.1    ?[31mpy  -    http://localhost:8000/\n"
            "\n"
            "to reach one from here: banger vm forward demo 8000, then open http://localhost:8000/\n"
        )
        listed = json.loads(ours.run("vm", "ports", "demo", "--json").stdout)
        assert listed == [SSHD, TIME, WEB | {"process": "?[31mpy"}]
        guest.documents["/ports"] = {"ports": [SSHD]}
        assert b"vm forward demo 10022:22, then connect to localhost:10022\n" in ours.run("vm", "ports", "demo").stdout
        guest.documents["/ports"] = {"ports": [TIME]}
        assert b"forward" not in ours.run("vm", "ports", "demo").stdout
        guest.documents["/ports"] = {"ports": []}
        assert ours.run("vm", "ports", "demo").stdout == b"nothing listens in demo\n"


def test_an_older_agent_is_named_as_the_reason(tmp_path: Path) -> None:
    with daemon(tmp_path) as ours, fake.guest(tmp_path) as guest:
        ours.tell(guest.vm)
        done = ours.run("vm", "ports", "demo")
    assert done.returncode == 2
    assert done.stderr.startswith(b"error: the agent in demo is too old for this\nhint:  make its image again")
