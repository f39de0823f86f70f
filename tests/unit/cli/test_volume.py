"""banger volume, vm delete --keep-work-disk and vm check, as a person or a script uses them; no VM runs."""

import asyncio
import contextlib
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from banger.cli.commands.volume import volume_and_vm
from banger.cli.parser import parse
from banger.model.vm import VmState
from banger.model.volume import Volume
from banger.paths import Paths
from banger.storage import volumes
from banger.storage.overlays import create_root_overlay
from banger.store.db import open_database
from banger.store.vms import VmStore
from banger.system.ext4 import make_ext4
from tests.support.home import BIN, Home
from tests.support.terminal import Terminal
from tests.unit.test_store import make_vm

MIB = 1024 * 1024
pytestmark = pytest.mark.skipif(
    not all(shutil.which(name) for name in ("qemu-img", "mke2fs")), reason="needs qemu-utils and e2fsprogs"
)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("image") / "root.ext4"
    asyncio.run(make_ext4(made, 16 * MIB, label="root"))
    return made


@pytest.fixture
def home() -> Iterator[Home]:
    made = Home(settings="disk_reserve_mib = 0\n")
    yield made
    made.close()


def paths(home: Home) -> Paths:
    return Paths(home.state, home.runtime, home.root / "cache")


def give_vm(home: Home, base: Path, name: str = "demo", *, work_disk: bool = True) -> None:
    """A stopped VM, before the daemon starts. Its id is of letters of its name's beginning."""
    vm_id = (name.encode().hex() * 12)[:12]
    where, image = paths(home).vm(vm_id), paths(home).image("debian")
    where.state.mkdir(parents=True)
    if not image.root.exists():
        image.directory.mkdir(parents=True)
        shutil.copy(base, image.root)
    asyncio.run(create_root_overlay(image.root, where.root_overlay))
    if work_disk:
        shutil.copy(base, where.work_disk)
    vm = msgspec.structs.replace(
        make_vm(name, vm_id), state=VmState.STOPPED, process=None, work_disk_bytes=16 * MIB if work_disk else 0
    )
    with contextlib.closing(open_database(paths(home).database)) as database:
        VmStore(database).add(vm)


def give_volume(home: Home, name: str) -> None:
    home.state.mkdir(exist_ok=True)
    (disk := home.state / "disk").write_bytes(bytes(4096))
    volumes.keep(paths(home), disk, Volume(name=name, image="debian", vm="old", created_at="2026-01-02T03:04:05+00:00"))


def names(home: Home) -> list[str]:
    return home.run("volume", "list", "--quiet").stdout.decode().split()


def test_a_work_disk_outlives_its_vm_and_goes_to_the_next(home: Home, base: Path) -> None:
    give_vm(home, base)
    give_vm(home, base, "next", work_disk=False)
    said = home.run("vm", "delete", "demo", "--keep-work-disk", "--yes").stderr.decode()
    assert "demo: deleted; its work disk is the volume demo" in said
    (told,) = home.json("volume", "list")
    assert (told["name"], told["vm"], told["bytes"]) == ("demo", "demo", 16 * MIB)
    assert home.json("volume", "show", "demo") == told == home.json("volume", "show", "--name", "demo")
    vm = home.json("volume", "attach", "demo", "next")
    assert (vm["name"], vm["work_disk_bytes"]) == ("next", 16 * MIB)
    assert home.json("volume", "list") == []
    (operation,) = (found for found in home.json("operation", "list") if found["kind"] == "volume.attach")
    assert (operation["target"], operation["state"]) == ("vm/next", "done")


def test_tables_and_words_for_people(home: Home) -> None:
    assert b"--keep-work-disk" in home.run("volume", "list").stdout
    give_volume(home, "notes")
    table = home.run("volume", "list").stdout.decode()
    assert re.search(r"^notes +4 KiB +4 KiB +old +debian +2026-01-02T03:04:05$", table, re.MULTILINE)
    assert re.search(
        r"^size +4 KiB, 4 KiB of it allocated here$", home.run("volume", "show", "notes").stdout.decode(), 8
    )


@pytest.mark.parametrize(
    "words", ["notes demo", "--volume notes --vm demo", "--volume notes demo", "--vm demo notes", "notes --vm demo"]
)
def test_attach_takes_words_and_flags(words: str) -> None:
    assert volume_and_vm(parse(["volume", "attach", *words.split()])) == ("notes", "demo")


@pytest.mark.parametrize(
    ("words", "status", "said", "hint"),
    [
        (("volume", "show", "nots"), 3, "nots", "notes"),
        (("volume", "show"), 2, "no volume was named", "volume list"),
        (("volume", "show", "Notes_"), 2, "not a valid volume name", "small letters"),
        (("volume", "attach", "nots", "demo"), 3, "nots", "notes"),
        (("volume", "attach", "notes", "nobody"), 3, "nobody", "vm list"),
        (("volume", "attach", "notes"), 2, "no VM was named", "vm list"),
        (("volume", "attach"), 2, "no volume was named", "volume list"),
        (("volume", "attach", "notes", "demo", "more"), 2, "'more'", "leave it out"),
        (("volume", "attach", "notes", "demo"), 4, "has a work disk already", "vm create --volume notes"),
        (("volume", "delete"), 2, "no volume was named", "volume list"),
        (("volume", "delete", "nots", "--yes"), 3, "nots", "notes"),
        (("volume", "delete", "notes"), 2, "nobody can be asked", "--yes"),
        (("volume", "delete", "damaged"), 2, "nobody can be asked", "--yes"),
        (("volume", "show", "damaged"), 2, "volume.json cannot be used", "volume delete damaged"),
        (
            ("vm", "delete", "plain", "--keep-work-disk", "--yes"),
            2,
            "plain has no work disk",
            "without --keep-work-disk",
        ),
        (("vm", "check"), 2, "no VM", "vm list"),
        (("vm", "check", "nobody"), 3, "nobody", "vm list"),
    ],
)
def test_a_mistake_is_told_with_the_next_step(
    mistaken: Home, words: tuple[str, ...], status: int, said: str, hint: str
) -> None:
    error, told = mistaken.error(*words, status=status).split("\nhint:  ", 1)
    assert said in error
    assert hint in told
    assert names(mistaken) == ["notes"]
    assert {vm["name"] for vm in mistaken.json("vm", "list")} == {"demo", "plain"}


@pytest.fixture(scope="module")
def mistaken(base: Path) -> Iterator[Home]:
    made = Home(settings="disk_reserve_mib = 0\n")
    give_vm(made, base)
    give_vm(made, base, "plain", work_disk=False)
    give_volume(made, "notes")
    (made.state / "volumes" / "damaged").mkdir()
    made.run("volume", "list")
    yield made
    made.close()


def test_delete_removes_volumes_damaged_ones_too(home: Home) -> None:
    give_volume(home, "notes")
    give_volume(home, "more")
    (home.state / "volumes" / "damaged").mkdir()
    done = home.json("volume", "delete", "notes", "damaged", "--name", "more", "--yes")
    assert [operation["state"] for operation in done] == ["done"] * 3
    assert list((home.state / "volumes").iterdir()) == []


def test_it_is_asked_with_what_will_be_lost(home: Home, base: Path) -> None:
    give_vm(home, base)
    give_vm(home, base, "next")
    give_volume(home, "demo")
    home.run("volume", "list")
    assert "delete demo (stopped) and everything on disk? [y/N]" in asked(home, "vm", "delete", "demo")
    assert (
        "delete demo (stopped; its work disk becomes the volume demo-2), next (stopped; its work disk becomes the "
        "volume next) and everything else on disk? [y/N]"
    ) in asked(home, "vm", "delete", "demo", "next", "--keep-work-disk")
    assert "delete the volume demo and everything on disk? [y/N]" in asked(home, "volume", "delete", "demo")
    assert names(home) == ["demo"]
    assert "deleted" in asked(home, "volume", "delete", "demo", answer=b"y\n", status=0)
    assert names(home) == []


def asked(home: Home, *words: str, answer: bytes = b"n\n", status: int = 1) -> str:
    """What a person is shown, who gives this answer."""
    environment = [f"{name}={value}" for name, value in home.env.items() if name.startswith("BANGER_")]
    terminal = Terminal(["env", *environment, str(BIN / "banger"), *words], home.root)
    try:
        terminal.wait(lambda: "[y/N]" in terminal.shown, 30)
        terminal.type(answer)
        assert terminal.end(30) == status, terminal.shown
    finally:
        terminal.close()
    return terminal.shown


def test_a_daemon_that_was_killed_while_it_kept_a_disk_completes_it(home: Home, base: Path) -> None:
    give_vm(home, base)
    with contextlib.closing(open_database(paths(home).database)) as database:
        (vm,) = VmStore(database).all()
        VmStore(database).update(msgspec.structs.replace(vm, state=VmState.DELETING, keep_work_disk="demo"))
    assert home.json("vm", "list") == []
    assert names(home) == ["demo"]


def test_check_says_a_line_for_each_disk(home: Home, base: Path) -> None:
    give_vm(home, base)
    done = home.run("vm", "check", "demo")
    assert done.stdout.decode() == "root disk: ok\nwork disk: ok\n"
    assert home.json("vm", "check", "demo") == [
        {"part": "root disk", "ok": True, "notes": []},
        {"part": "work disk", "ok": True, "notes": []},
    ]
    assert home.json("vm", "check", "demo", "--detach")["kind"] == "vm.check"


def test_check_of_damaged_disks_fails_and_says_what_is_wrong(home: Home, base: Path) -> None:
    give_vm(home, base)
    (vm,) = (home.state / "vms").iterdir()
    (vm / "root.qcow2").write_bytes(b"x")
    done = home.run("vm", "check", "demo", status=1)
    assert done.stdout.decode() == "root disk: damaged (root.qcow2 is no qcow2 of version 3)\nwork disk: ok\n"
    error, hint = done.stderr.decode().split("error: ", 1)[1].split("\nhint:  ", 1)
    assert error == "damage was found in demo: root disk"
    assert "vm delete --keep-work-disk demo" in hint
    done = home.run("vm", "check", "demo", "--json", status=1)
    assert [part["ok"] for part in json.loads(done.stdout)] == [False, True]
