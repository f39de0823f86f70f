"""banger engine, as a person or a script uses it."""

import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from banger.engine.releases import RELEASES
from tests.support.firecracker import program, put, release, sha256
from tests.support.home import Home
from tests.support.mirror import Mirror, mirror

VERSION = "1.9.9"
ARCHIVE = f"firecracker-v{VERSION}-x86_64.tgz"


@pytest.fixture
def server() -> Iterator[Mirror]:
    with mirror() as made:
        made.files[f"/v{VERSION}/{ARCHIVE}"] = release(VERSION)
        yield made


@pytest.fixture
def home() -> Iterator[Home]:
    made = Home()
    made.env["no_proxy"] = "*"
    yield made
    made.close()


@pytest.fixture(scope="module")
def mistaken() -> Iterator[Home]:
    """A banger in which nothing is installed, and nothing gets installed."""
    made = Home()
    made.env["no_proxy"] = "*"
    made.run("engine", "list")
    made.run("engine", "list", "--json")
    yield made
    made.close()


def install_words(server: Mirror, version: str = VERSION) -> tuple[str, ...]:
    content = server.files[f"/v{version}/firecracker-v{version}-x86_64.tgz"]
    words = ("engine", "install", "firecracker", "--version", version)
    return (*words, "--mirror", server.url, "--sha256", sha256(content))


def files_of(home: Home) -> list[str]:
    roots = (home.root / "cache" / "downloads", home.state / "engines")
    return sorted(str(p.relative_to(home.root)) for root in roots for p in root.rglob("*") if p.is_file())


def test_install_list_and_remove(home: Home, server: Mirror) -> None:
    done = home.run(*install_words(server))
    assert f"Firecracker {VERSION} is installed".encode() in done.stdout
    for stage in (b"download", b"verify", b"unpack"):
        assert stage in done.stderr
    listed = home.json("engine", "list", "--verify")
    ours = next(engine for engine in listed if engine["name"] == "firecracker" and engine["origin"] == "installed")
    assert ours["version"] == VERSION
    assert subprocess.run([*ours["program"], "--version"], capture_output=True, check=True).stdout.startswith(
        b"Firecracker v1.9.9"
    )
    assert ours["jailer"]
    assert ours["reason"]
    assert any(engine["name"] == "qemu" for engine in listed)
    table = home.run("engine", "list").stdout.decode()
    assert re.search(rf"^firecracker +{VERSION} +installed", table, re.MULTILINE)
    assert f"firecracker {VERSION}: {ours['reason']}" in table
    assert f"{VERSION} is removed" in home.run("engine", "remove", "firecracker", "--version", VERSION).stdout.decode()
    assert files_of(home) == []
    assert VERSION not in home.run("engine", "list").stdout.decode()


def test_json_of_an_installation_is_its_record_and_the_second_one_changes_nothing(home: Home, server: Mirror) -> None:
    first = home.json(*install_words(server))
    assert first["changed"] is True
    assert first["record"]["archive"] == f"sha256:{sha256(release(VERSION))}"
    again = home.json(*install_words(server))
    assert (again["changed"], again["record"]) == (False, first["record"])
    said = home.run(*install_words(server))
    assert b"was installed already" in said.stdout
    assert b"nothing was changed" in said.stderr
    (operation, *_) = home.json("operation", "list")
    assert (operation["kind"], operation["target"]) == ("engine.install", f"engine/firecracker-{VERSION}")


def test_a_file_is_found_from_where_the_person_is(home: Home, tmp_path: Path) -> None:
    digest = sha256(put(tmp_path, VERSION).read_bytes())
    words = [str(Path(home._command[0])), "engine", "install", "firecracker", "--file", ARCHIVE, "--sha256", digest]
    done = subprocess.run(words, env=home.env, cwd=tmp_path, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert str(tmp_path / ARCHIVE) in done.stdout.decode()


def test_two_versions_lie_side_by_side(home: Home, server: Mirror) -> None:
    server.files["/v1.11.3/firecracker-v1.11.3-x86_64.tgz"] = release("1.11.3")
    home.run(*install_words(server))
    home.run(*install_words(server, "1.11.3"))
    versions = [e["version"] for e in home.json("engine", "list") if e["origin"] == "installed"]
    assert versions == ["1.11.3", VERSION]


@pytest.mark.parametrize(
    ("words", "status", "said", "hint"),
    [
        (("install", "firecraker"), 2, "firecraker", "did you mean firecracker"),
        (("install", "firecracker", "--version", "1.9.8"), 2, "no digest of Firecracker 1.9.8", "--sha256"),
        (("install", "firecracker", "--version", "1.7.0"), 2, "not new enough", "1.8.0"),
        (("install", "firecracker", "--version", "new"), 2, "'new'", "1.15.1"),
        (("install", "firecracker", "--file", "/no/file.tgz"), 2, "file.tgz", "--version"),
        (("install", "firecracker", "--mirror", "ftp://a"), 2, "ftp://a", "http"),
        (("install", "firecracker", "--mirror", "http://127.0.0.1:1"), 5, "127.0.0.1", "network"),
        (("remove", "firecracker", "--version", "1.9.9"), 3, "1.9.9 is not installed", "engine list"),
        (("remove", "firecracker"), 2, "--version", "--help"),
    ],
)
def test_a_mistake_is_told_with_the_next_step(
    mistaken: Home, words: tuple[str, ...], status: int, said: str, hint: str
) -> None:
    error, told = mistaken.error("engine", *words, status=status).split("\nhint:  ", 1)
    assert said in error
    assert hint in told
    assert files_of(mistaken) == []


def test_a_mirror_that_lies_about_a_pinned_release_gets_nothing_installed(home: Home, server: Mirror) -> None:
    pinned = RELEASES[0]
    server.files[f"/v{pinned.version}/firecracker-v{pinned.version}-x86_64.tgz"] = release(pinned.version)
    words = ("engine", "install", "firecracker", "--version", pinned.version, "--mirror", server.url)
    text = home.error(*words, status=2)
    assert "not the one that is expected" in text
    assert pinned.archive in text
    assert files_of(home) == []


def test_a_mirror_without_the_release_is_told(home: Home, server: Mirror) -> None:
    text = home.error("engine", "install", "firecracker", "--mirror", server.url, status=1)
    assert "404" in text
    assert "check the version and the mirror" in text


def test_a_broken_download_goes_on_with_the_next_command(home: Home, server: Mirror) -> None:
    server.cuts = [300, 0]
    assert "goes on where it stopped" in home.error(*install_words(server), status=1)
    assert files_of(home) == [f"cache/downloads/{ARCHIVE}.partial"]
    home.run(*install_words(server))
    assert server.asked[-1][1] == "bytes=300-"
    assert not list((home.root / "cache" / "downloads").iterdir())


def test_ctrl_c_cancels_and_leaves_nothing_but_the_part_that_came(home: Home, server: Mirror) -> None:
    home.run("engine", "list")
    server.stall = True
    child = home.start(*install_words(server))
    assert server.stalled.wait(20)
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=20)
    assert child.returncode not in (0, None)
    assert b"Traceback" not in err
    (operation, *_) = home.json("operation", "list")
    assert operation["state"] == "cancelled"
    assert set(files_of(home)) <= {f"cache/downloads/{ARCHIVE}.partial"}
    assert "is not installed" in home.error("engine", "remove", "firecracker", "--version", VERSION, status=3)


def test_while_it_is_installed_it_cannot_be_removed(home: Home, server: Mirror) -> None:
    server.stall = True
    begun = home.json(*install_words(server), "--detach")
    assert server.stalled.wait(20)
    text = home.error("engine", "remove", "firecracker", "--version", VERSION, status=4)
    assert begun["id"] in text
    home.run("operation", "cancel", begun["id"])
    home.run("operation", "wait", begun["id"], status=None)


def test_a_firecracker_of_the_persons_own_is_seen(home: Home, tmp_path: Path) -> None:
    (tmp_path / "firecracker").write_bytes(program("Firecracker v1.7.0"))
    (tmp_path / "firecracker").chmod(0o755)
    home.env["PATH"] = f"{tmp_path}:{home.env['PATH']}"
    (found,) = (engine for engine in home.json("engine", "list") if engine["name"] == "firecracker")
    assert (found["origin"], found["usable"], found["program"]) == ("path", False, [str(tmp_path / "firecracker")])
    assert "not new enough" in found["reason"]
