"""banger image list, show, delete, rename and prune, as a person or a script uses them; no VM runs."""

import contextlib
import json
import re
from collections.abc import Iterator

import msgspec
import pytest

from banger.model.vm import VmState
from banger.paths import Paths
from banger.store.db import open_database
from banger.store.vms import VmStore
from tests.support.home import Home
from tests.unit.cli.test_volume import asked
from tests.unit.images.older import make_older, publish_small
from tests.unit.test_store import make_vm


def paths(home: Home) -> Paths:
    return Paths(home.state, home.runtime, home.root / "cache")


def give_vm(home: Home, name: str, image: str) -> None:
    """A stopped VM's record, before the daemon starts."""
    vm = make_vm(name, name.encode().hex().ljust(12, "0")[:12])
    with contextlib.closing(open_database(paths(home).database)) as database:
        VmStore(database).add(msgspec.structs.replace(vm, image=image, state=VmState.STOPPED, process=None))


def litter(home: Home) -> None:
    """An import that was not finished, and downloads."""
    for directory in (paths(home).imports, paths(home).downloads):
        directory.mkdir(parents=True)
        (directory / "file").write_bytes(b"x" * 8192)


@pytest.fixture(scope="module")
def home() -> Iterator[Home]:
    """Everything in it stays as it is."""
    made = Home()
    with_opencode = {"has_opencode": True, "kernel_release": "6.12.38+deb12-cloud-amd64"}
    publish_small(paths(made), "debian", **with_opencode)
    publish_small(paths(made), "child", parents=("debian",), memory_mib=256)
    publish_small(paths(made), "broken")
    paths(made).image("broken").kernel.unlink()
    make_older(paths(made), "older", "no manifest", helper="vsock-ping")
    for name in ("demo", "second", "third"):
        give_vm(made, name, "debian")
    give_vm(made, "fourth", "older")
    litter(made)
    yield made
    made.close()


@pytest.fixture
def fresh() -> Iterator[Home]:
    made = Home()
    publish_small(paths(made), "debian")
    publish_small(paths(made), "child", parents=("debian",))
    litter(made)
    yield made
    made.close()


def names(home: Home) -> list[str]:
    return home.run("image", "list", "--quiet").stdout.decode().split()


def test_the_list_says_what_an_image_is_and_who_uses_it_in_80_columns(home: Home) -> None:
    done = home.run("image", "list")
    table = done.stdout.decode()
    assert re.search(r"^NAME +KIND +DISTRO +SIZE +ON DISK +MEMORY +USED BY$", table, re.MULTILINE)
    assert re.search(r"^debian +managed +debian 12 +4 B +\S+ KiB +\S+ [MG]iB\+ +demo \+2$", table, re.MULTILINE)
    assert re.search(r"^child +managed +debian 12 +4 B +\S+ KiB +256 MiB\+ +-$", table, re.MULTILINE)
    assert max(map(len, table.splitlines())) <= 80
    assert "broken" not in table
    assert "the image broken is damaged: vmlinux is missing" in done.stderr.decode()
    assert names(home) == ["broken", "child", "debian", "older"]


def test_a_script_gets_who_uses_it_and_what_it_takes(home: Home) -> None:
    images = {image["name"]: image for image in home.json("image", "list")}
    assert images["debian"]["vms"] == ["demo", "second", "third"]
    assert images["debian"]["children"] == ["child"]
    assert images["debian"]["allocated_bytes"] > 0
    assert "vmlinux is missing" in images["broken"]["problem"]
    assert home.json("image", "show", "debian") == images["debian"]


def test_one_image_is_shown_with_what_it_needs_and_where_it_comes_from(home: Home) -> None:
    said = home.run("image", "show", "debian").stdout.decode()
    assert re.search(r"^kind +managed$", said, re.MULTILINE)
    assert re.search(r"^needs +an engine .*ACPI.*of memory or more$", said, re.MULTILINE)
    assert re.search(r"^used by +demo, second, third$", said, re.MULTILINE)
    assert re.search(r"^children +child$", said, re.MULTILINE)
    assert re.search(r"^work-seed +4 B +[0-9a-f]{16} +work-seed.ext4$", said, re.MULTILINE)
    assert re.search(r"^made of +debian$", home.run("image", "show", "child").stdout.decode(), re.MULTILINE)
    older = home.run("image", "show", "older").stdout.decode()
    assert re.search(r"^agent +8 B", older, re.MULTILINE)
    assert re.search(r"^packages +nobody wrote them down$", older, re.MULTILINE)


def test_words_of_whoever_made_an_image_do_nothing_to_the_terminal(fresh: Home) -> None:
    publish_small(paths(fresh), "foreign", origin="\x1b[31mred", distro="\x1b]0;title\x07")
    for words in (("image", "list"), ("image", "show", "foreign")):
        done = fresh.run(*words)
        assert b"\x1b" not in done.stdout + done.stderr
    assert b"?[31mred" in done.stdout


@pytest.mark.parametrize(
    ("words", "status", "said", "hint"),
    [
        (("delete",), 2, "no image was named", "image list"),
        (("delete", "child"), 2, "nobody can be asked", "--yes"),
        (("delete", "broken"), 2, "nobody can be asked", "--yes"),
        (("delete", "nothing", "--yes"), 3, "nothing", "bootstrap"),
        (("delete", "Bad_Name", "--yes"), 2, "Bad_Name", "small letters"),
        (("delete", "debian", "--yes"), 4, "is used by the VMs demo, second, third", "vm set NAME --image"),
        (("delete", "debian", "--yes", "--force"), 4, "is used by the VMs demo, second, third", "vm set NAME --image"),
        (("delete", "older", "--yes"), 4, "is used by the VM fourth", "vm delete fourth"),
        (("rename", "debian", "other"), 4, "root disks of the VMs demo, second, third", "vm delete NAME"),
        (("rename", "child", "older"), 4, "an image older already", "image delete older"),
        (("rename", "child"), 2, "NEW", "--help"),
        (("rename", "nothing", "other"), 3, "nothing", "bootstrap"),
        (("show", "broken"), 2, "vmlinux is missing", "image delete broken"),
    ],
)
def test_a_mistake_is_told_with_the_next_step(
    home: Home, words: tuple[str, ...], status: int, said: str, hint: str
) -> None:
    home.run("image", "list")
    error, told = home.error("image", *words, status=status).split("\nhint:  ", 1)
    assert said in error
    assert hint in told
    assert names(home) == ["broken", "child", "debian", "older"]


def test_delete_takes_several_and_children_stay_with_force(fresh: Home) -> None:
    error = fresh.error("image", "delete", "debian", "--yes", status=4)
    assert "the image child was made of the image debian" in error
    assert "--force" in error
    done = fresh.json("image", "delete", "debian", "--yes", "--force")
    assert [(one["kind"], one["state"]) for one in done] == [("image.delete", "done")]
    assert names(fresh) == ["child"]
    (fresh.state / "images" / "damaged").mkdir()
    done = fresh.json("image", "delete", "damaged", "--name", "child", "--yes")
    assert [one["state"] for one in done] == ["done"] * 2
    assert list((fresh.state / "images").iterdir()) == []


def test_it_is_asked_with_what_goes(fresh: Home) -> None:
    fresh.run("image", "list")
    assert "delete the image child from the disk? [y/N]" in asked(fresh, "image", "delete", "child")
    assert names(fresh) == ["child", "debian"]
    assert "deleted" in asked(fresh, "image", "delete", "child", answer=b"y\n", status=0)
    assert names(fresh) == ["debian"]


def test_a_renamed_image_is_shown(fresh: Home) -> None:
    assert fresh.json("image", "rename", "debian", "base")["name"] == "base"
    assert b"base" in fresh.run("image", "rename", "child", "kid").stdout
    assert fresh.json("image", "show", "kid")["parents"] == ["base"]
    assert names(fresh) == ["base", "kid"]
    operation = fresh.json("image", "rename", "kid", "child", "--detach")
    assert (operation["kind"], operation["target"]) == ("image.rename", "image/kid")


def test_prune_says_what_goes_and_how_much_of_each_kind(fresh: Home) -> None:
    said = fresh.run("image", "prune", "--all", "--dry-run").stdout.decode()
    assert re.search(r"^imports +1 +8 KiB$", said, re.MULTILINE)
    assert "16 KiB would be removed" in said
    assert (paths(fresh).imports / "file").exists()
    done = fresh.json("image", "prune")
    assert {one["kind"]: one["bytes"] for one in done["kinds"]} == {"layers": 0, "imports": 8192, "replaced parts": 0}
    assert not (paths(fresh).imports / "file").exists()
    assert (paths(fresh).downloads / "file").exists()
    assert "8 KiB removed" in fresh.run("image", "prune", "--all").stdout.decode()
    assert names(fresh) == ["child", "debian"]
    detached = json.loads(fresh.run("image", "prune", "--detach", "--json").stdout)
    assert detached["kind"] == "image.prune"
