"""`banger capacity`, and what a person is told when the disk is nearly full; a real daemon, no machine."""

import contextlib
import os
from collections.abc import Iterator

import msgspec
import pytest

from banger.model.vm import VmState
from banger.paths import Paths
from banger.store.db import open_database
from banger.store.vms import VmStore
from tests.support.home import Home
from tests.unit.images.test_catalog import make as make_image
from tests.unit.test_store import make_vm

ID = "0123456789ab"
MORE_THAN_ANY_DISK = 1 << 40


def furnished(settings: str) -> Home:
    """A home with an image, a stopped VM whose overlay is mostly a hole, and a volume."""
    home = Home(settings=settings)
    paths = Paths(home.state, home.runtime, home.root / "cache")
    make_image(paths, "debian")
    vm = paths.vm(ID)
    vm.state.mkdir(parents=True)
    with vm.root_overlay.open("wb") as file:
        file.truncate(64 << 30)
        file.write(os.urandom(1 << 20))
        os.fsync(file.fileno())
    paths.volume("kept").directory.mkdir(parents=True)
    paths.volume("kept").disk.write_bytes(os.urandom(1 << 20))
    with contextlib.closing(open_database(paths.database)) as database:
        record = msgspec.structs.replace(make_vm("demo", ID), state=VmState.STOPPED, process=None)
        VmStore(database).add(record)
    return home


@pytest.fixture(scope="module")
def home() -> Iterator[Home]:
    made = furnished("")
    yield made
    made.close()


@pytest.fixture(scope="module")
def full() -> Iterator[Home]:
    made = furnished(f"disk_reserve_mib = {MORE_THAN_ANY_DISK}\n")
    yield made
    made.close()


def test_json_is_one_document_with_what_is_allocated(home: Home) -> None:
    found = home.json("capacity")
    (vm,) = found["vms"]
    assert (vm["name"], vm["state"], vm["vcpu"], vm["memory_mib"]) == ("demo", "stopped", 2, 512)
    assert 1 << 20 <= vm["allocated_bytes"] < 2 << 20
    assert vm["allocated_bytes"] == home.json("vm", "show", "demo")["disk_allocated_bytes"]
    assert found["cpu"]["reserved"] == found["memory"]["reserved_mib"] == 0
    disk, seen = found["disk"], os.statvfs(home.state)
    assert disk["total_bytes"] == seen.f_blocks * seen.f_frsize
    assert disk["reserve_bytes"] == 2048 << 20
    parts = ("vms_bytes", "images_bytes", "volumes_bytes", "others_bytes", "kept_bytes", "free_bytes")
    assert sum(disk[part] for part in parts) == disk["total_bytes"]
    assert [image["name"] for image in found["images"]] == ["debian"]
    (volume,) = found["volumes"]
    assert (volume["name"], volume["shared_bytes"]) == ("kept", 0)
    assert volume["allocated_bytes"] == disk["volumes_bytes"]


def test_a_person_reads_first_what_can_be_used(home: Home) -> None:
    lines = home.run("capacity").stdout.decode().splitlines()
    assert lines[0].startswith("disk ")
    assert "2 GiB of it the reserve" in lines[0]
    assert any(line.startswith("demo ") and "stopped" in line for line in lines)
    assert any(line.startswith("image debian") for line in lines)
    assert any(line.startswith("volume kept") and "1 MiB" in line for line in lines)
    assert "1 MiB volumes" in lines[1]


def test_it_takes_nothing_more(home: Home) -> None:
    assert "--help" in home.error("capacity", "demo", status=2)


@pytest.mark.parametrize("words", [("vm", "create", "--name", "new"), ("vm", "start", "demo")])
def test_a_full_disk_refuses_with_the_next_step(full: Home, words: tuple[str, ...]) -> None:
    full.run("vm", "list")
    text = full.error(*words, status=5)
    assert "must stay free" in text
    assert "`banger capacity`" in text
    assert full.json("vm", "list", status=0)[0]["state"] == "stopped"
    assert len(full.json("vm", "list")) == 1
    assert full.json("operation", "list") == []


def test_a_full_disk_is_said_first(full: Home) -> None:
    assert "no VM can be created or started" in full.run("capacity").stdout.decode().splitlines()[0]
    assert full.json("capacity")["disk"]["room_bytes"] == 0


def test_the_setting_is_shown_as_it_was_written(full: Home) -> None:
    assert f"disk_reserve_mib = {MORE_THAN_ANY_DISK}\n" in full.run("config", "show").stdout.decode()
