"""The runtime bundle: made, brought up to date, never losing a key, and clear about what is wrong with it."""

import asyncio
import json
import logging
import subprocess
from pathlib import Path
from typing import Any

import pytest

from banger.config import Settings
from banger.engine.select import Accelerator
from banger.guest.bundle import agent_tree
from banger.model.engine import EngineInfo
from banger.model.errors import Conflict, Invalid
from banger.model.vm import WantedEngine
from banger.paths import BundlePaths, Paths
from banger.service.bundle import RuntimeBundle
from banger.service.vms import EngineChoice
from banger.system.locks import FileLock
from tests.support.home import Home
from tests.unit.engine.test_select import KVM, PLAIN, QEMU, firecracker


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return Paths(tmp_path / "state", tmp_path / "run", tmp_path / "cache")


def opened(paths: Paths, **settings: str) -> RuntimeBundle:
    bundle = RuntimeBundle(paths, Settings(**settings))  # type: ignore[arg-type]
    asyncio.run(bundle.open())
    return bundle


def where(paths: Paths) -> BundlePaths:
    return BundlePaths(paths.bundle)


def document(paths: Paths) -> Any:
    return json.loads(where(paths).metadata.read_bytes())


def describe(paths: Paths, **changes: object) -> None:
    told = document(paths) if where(paths).metadata.exists() else {}
    paths.bundle.mkdir(parents=True, exist_ok=True)
    where(paths).metadata.write_text(json.dumps(told | changes))


def keygen(*words: str | Path) -> str:
    return subprocess.run(["ssh-keygen", *words], check=True, capture_output=True, text=True).stdout


def below(directory: Path) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*") if not path.is_dir())


def test_a_new_bundle_has_our_agent_and_no_key_yet(paths: Paths) -> None:
    bundle = opened(paths)
    assert bundle.agent() == agent_tree()
    assert set(below(where(paths).agent)) == set(agent_tree())
    told = document(paths)
    assert (told["format"], told["agent"], told["ssh_fingerprint"], told["engine"]) == (1, "agent", None, None)
    assert sorted(path.name for path in paths.bundle.iterdir()) == [".lock", "agent", "bundle.json"]


def test_the_key_is_made_once_and_ssh_is_led_to_it(paths: Paths) -> None:
    public = asyncio.run(opened(paths).public_key())
    key = paths.bundle / "ssh/id_ed25519"
    assert key.stat().st_mode & 0o777 == 0o600
    assert keygen("-y", "-f", paths.ssh_key).split()[:2] == public.split()[:2]
    assert document(paths)["ssh_fingerprint"] in keygen("-l", "-f", key)
    assert asyncio.run(opened(paths).public_key()) == public


def test_an_older_versions_key_moves_in_and_stays_the_same(paths: Paths) -> None:
    paths.ssh_key.parent.mkdir(parents=True)
    keygen("-q", "-t", "ed25519", "-N", "", "-f", paths.ssh_key)
    private, public = paths.ssh_key.read_bytes(), paths.ssh_key.with_suffix(".pub").read_text()
    for _ in range(2):
        assert asyncio.run(opened(paths).public_key()) == public.strip()
    assert (paths.bundle / "ssh/id_ed25519").read_bytes() == private
    assert paths.ssh_key.readlink() == paths.bundle / "ssh/id_ed25519"
    assert below(paths.ssh_key.parent) == ["id_ed25519", "id_ed25519.pub"]


def test_a_key_that_would_be_hidden_by_the_bundles_is_kept(paths: Paths, caplog: pytest.LogCaptureFixture) -> None:
    public = asyncio.run(opened(paths).public_key())
    paths.ssh_key.unlink()
    paths.ssh_key.write_text("another")
    assert asyncio.run(opened(paths).public_key()) == public
    assert paths.ssh_key.with_name("id_ed25519.old").read_text() == "another"
    assert "is kept as" in caplog.text


def test_a_lost_public_half_is_made_from_the_private_one(paths: Paths) -> None:
    public = asyncio.run(opened(paths).public_key())
    (paths.bundle / "ssh/id_ed25519.pub").unlink()
    assert asyncio.run(opened(paths).public_key()).split()[:2] == public.split()[:2]


@pytest.mark.parametrize("damage", ["changed", "missing", "more", "gone", "link"])
def test_our_agent_is_put_right(paths: Paths, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    opened(paths)
    agent = where(paths).agent
    protocol = agent / "banger/guest/protocol.py"
    if damage == "changed":
        protocol.write_text("evil = True\n")
    elif damage == "missing":
        protocol.unlink()
    elif damage == "more":
        (agent / "more.py").write_text("")
    else:
        agent.rename(paths.bundle / "elsewhere")
        if damage == "link":
            agent.symlink_to("/etc")
    caplog.clear()
    assert opened(paths).agent() == agent_tree()
    assert set(below(agent)) == set(agent_tree())
    assert "agent_path" in caplog.text


def test_an_older_agent_is_replaced_without_a_word(paths: Paths, caplog: pytest.LogCaptureFixture) -> None:
    opened(paths)
    (where(paths).agent / "banger/guest/old.py").write_text("")
    describe(paths, agent_version="1", agent_sha256="0" * 64)
    assert opened(paths).agent() == agent_tree()
    assert document(paths)["agent_version"] != "1"
    assert caplog.text == ""


def own_agent(directory: Path) -> Path:
    entry = directory / "banger/guest/agent/__main__.py"
    entry.parent.mkdir(parents=True)
    entry.write_text("print('mine')\n")
    (entry.parent / "__pycache__").mkdir()
    (entry.parent / "__pycache__/x.pyc").write_bytes(b"")
    return directory


def test_an_agent_of_ones_own_is_taken_and_left_alone(paths: Paths, tmp_path: Path) -> None:
    mine = {"banger/guest/agent/__main__.py": b"print('mine')\n"}
    assert opened(paths, agent_path=str(own_agent(tmp_path / "a"))).agent() == mine
    describe(paths, agent=str(own_agent(tmp_path / "b")))
    assert opened(paths).agent() == mine
    own_agent(paths.bundle / "mine")
    describe(paths, agent="mine")
    assert opened(paths).agent() == mine
    assert below(paths.bundle / "mine")


@pytest.mark.parametrize(
    ("make", "said"), [("nothing", "has no banger/guest"), ("binary", "not Python"), ("link", "plain")]
)
def test_what_is_no_agent_is_refused_naming_who_named_it(paths: Paths, tmp_path: Path, make: str, said: str) -> None:
    directory = tmp_path / "a"
    if make != "nothing":
        own_agent(directory)
    if make == "binary":
        (directory / "vsock-ping").write_bytes(b"\x7fELF")
    elif make == "link":
        (directory / "out.py").symlink_to("/etc/passwd")
    with pytest.raises(Invalid, match=said) as caught:
        opened(paths, agent_path=str(directory)).agent()
    assert "agent_path" in caught.value.hint


def test_the_older_name_of_the_agent_is_told_once(paths: Paths, caplog: pytest.LogCaptureFixture) -> None:
    own_agent(paths.bundle / "mine")
    describe(paths, **{"vsock-ping": "mine"})
    for _ in range(2):
        assert list(opened(paths).agent()) == ["banger/guest/agent/__main__.py"]
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "'agent' now" in caplog.text
    assert document(paths)["agent"] == "mine"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "truncated"),
        ("[]", "object"),
        ('{"format": 2}', "format 2"),
        ('{"agnet": "x"}', "did you mean 'agent'"),
        ('{"engine": "vmware"}', "engine"),
        ('{"agent": 7}', "agent"),
        ('{"agent": "../../etc"}', "leads out"),
        ('{"agent": "."}', "leads out"),
        ('{"agent": "link"}', "leads out"),
        ('{"kernel": "../vmlinux"}', "leads out"),
        ('{"ssh_key": "../id"}', "leads out"),
        ('{"agent": "a", "vsock-ping": "b"}', "they differ"),
        ('{"ssh_key": "' + "x" * 70_000 + '"}', "truncated"),
    ],
)
def test_a_damaged_description_names_itself_and_the_way_out(paths: Paths, content: str, said: str) -> None:
    paths.bundle.mkdir(parents=True)
    (paths.bundle / "link").symlink_to("/etc")
    where(paths).metadata.write_text(content)
    with pytest.raises(Invalid, match=said) as caught:
        opened(paths)
    assert str(where(paths).metadata) in caught.value.message
    assert caught.value.hint
    assert where(paths).metadata.read_text() == content


def test_removing_the_description_keeps_the_key(paths: Paths) -> None:
    public = asyncio.run(opened(paths).public_key())
    where(paths).metadata.unlink()
    assert asyncio.run(opened(paths).public_key()) == public
    assert document(paths)["ssh_fingerprint"]


def test_a_key_that_the_person_names_must_be_there(paths: Paths, tmp_path: Path) -> None:
    describe(paths, ssh_key=str(tmp_path / "id"))
    with pytest.raises(Invalid, match="there is no SSH key"):
        asyncio.run(opened(paths).public_key())
    keygen("-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "id")
    assert asyncio.run(opened(paths).public_key()) == (tmp_path / "id.pub").read_text().strip()
    assert paths.ssh_key.readlink() == tmp_path / "id"


def test_the_bundle_may_lie_elsewhere(paths: Paths, tmp_path: Path) -> None:
    bundle = opened(paths, bundle_dir=str(tmp_path / "b"))
    asyncio.run(bundle.public_key())
    assert paths.ssh_key.readlink() == tmp_path / "b/ssh/id_ed25519"
    assert not paths.bundle.exists()


def test_one_daemon_at_a_time_updates_it(paths: Paths) -> None:
    opened(paths)
    lock = FileLock(where(paths).lock)
    assert lock.try_acquire()
    try:
        with pytest.raises(Conflict):
            opened(paths)
    finally:
        lock.release()


def test_the_engine_that_it_names_is_the_default(paths: Paths) -> None:
    assert opened(paths).engine == "auto"
    describe(paths, engine="qemu")
    assert opened(paths).engine == "qemu"


def test_a_vm_that_asks_for_no_engine_gets_the_bundles(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    async def found(*_: object) -> list[EngineInfo]:
        return [firecracker("1.15.1"), QEMU]

    async def proven() -> Accelerator:
        return KVM

    monkeypatch.setattr("banger.service.vms.find_engines", found)
    monkeypatch.setattr("banger.service.vms.prove_accelerator", proven)

    def chosen(wanted: WantedEngine, preferred: WantedEngine) -> tuple[str, str]:
        engine = asyncio.run(EngineChoice(paths, preferred)(wanted, PLAIN))
        return engine.name, engine.reason

    assert chosen("auto", "auto")[0] == "firecracker"
    assert chosen("auto", "qemu") == ("qemu", "the bundle names it")
    assert chosen("firecracker", "qemu") == ("firecracker", "asked for")


def test_a_daemon_with_a_damaged_bundle_says_so_and_one_that_is_put_right_starts() -> None:
    home = Home(settings="ping_helper = '/opt/agent'\n")
    try:
        bundle = home.state / "bundle/bundle.json"
        bundle.parent.mkdir(parents=True)
        bundle.write_text('{"agnet": "x"}')
        told = home.error("vm", "list", status=2)
        for part in (str(bundle), "did you mean 'agent'", "remove it"):
            assert part in told
        bundle.unlink()
        home.run("vm", "list")
        assert "ping_helper is called agent_path now" in (home.state / "daemon.log").read_text()
        shown = home.run("config", "show", "--origin")
        assert "config.toml (as ping_helper)" in shown.stdout.decode()
        assert shown.stderr.decode().count("ping_helper is called agent_path now") == 1
    finally:
        home.close()
