"""`banger verify` on an image that works, and on ones that do not."""

import json
import os
import signal
import tarfile
from pathlib import Path

from tests.support.home import Home


def nothing_left(home: Home) -> None:
    assert home.json("vm", "list") == []
    assert not list((home.state / "vms").glob("*"))
    assert not list((home.runtime / "vms").glob("*"))


def test_an_image_that_works_is_said_to_and_leaves_nothing(fresh: Home) -> None:
    done = fresh.json("verify")
    assert done["ok"]
    steps = [step["step"] for step in done["steps"]]
    assert steps == [
        *("create", "health", "exec", "write to /root", "ssh", "ports", "stop", "start", "/root is kept", "delete"),
        "nothing is left",
    ]
    nothing_left(fresh)
    assert not list((fresh.state / "reports").glob("*"))


def lying_image(home: Home, images: Path) -> None:
    """An image `lies` whose description names another kernel than it boots."""
    home.run("daemon", "stop", status=None)
    (home.state / "images").unlink()
    copy = home.state / "images" / "lies"
    copy.mkdir(parents=True)
    for part in (images / "debian").iterdir():
        if part.name != "image.json":
            os.link(part, copy / part.name)
    described = json.loads((images / "debian" / "image.json").read_text())
    (copy / "image.json").write_text(json.dumps(described | {"name": "lies", "kernel_release": "1.2.3-none"}))


def test_a_step_that_fails_leaves_one_report_that_says_where_to_look(fresh: Home, images: Path) -> None:
    lying_image(fresh, images)
    text = fresh.error("verify", "--image", "lies", status=1)
    assert "exec: the kernel" in text
    assert "1.2.3-none" in text
    (report,) = (fresh.state / "reports").glob("*.tar.gz")
    assert str(report) in text
    assert "look first at" in text
    with tarfile.open(report) as archive:
        names = {entry.name.split("/", 1)[1] for entry in archive}
    parts = {"vm.json", "operations.json", "events.json", "health.json", "console.log", "engine.log", "daemon.log"}
    assert parts | {"links.json", "sockets.json", "nat.json", "leases.json", "versions.json"} <= names
    nothing_left(fresh)


def test_the_waits_share_one_deadline(fresh: Home) -> None:
    text = fresh.error("verify", "--timeout", "2", status=1)
    assert "create" in text
    assert "within" in text
    assert list((fresh.state / "reports").glob("*.tar.gz"))
    nothing_left(fresh)


def test_ctrl_c_takes_the_machine_away(fresh: Home) -> None:
    child = fresh.start("verify")
    assert child.stderr is not None
    while b"create" not in child.stderr.readline():
        pass
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=60)
    assert child.returncode == 130, err
    assert b"Traceback" not in err
    nothing_left(fresh)
