"""What belongs to one machine or person is taken out of a root, and of a hostile root nothing else is touched."""

import os
import subprocess
from pathlib import Path

import pytest

from banger.images.appliance import tidy

BUSYBOX = Path("/bin/busybox")
pytestmark = pytest.mark.skipif(not BUSYBOX.exists(), reason="busybox-static is not installed")

GONE = (
    "etc/ssh/ssh_host_ed25519_key",
    "etc/ssh/ssh_host_rsa_key.pub",
    "etc/resolv.conf",
    "var/lib/dbus/machine-id",
    "var/lib/systemd/random-seed",
    "var/lib/systemd/credential.secret",
    "var/lib/dhcp/dhclient.leases",
    "var/lib/cloud/instance/user-data.txt",
    "var/log/syslog",
    "var/log/apt/term.log",
    "var/log/journal/0123/system.journal",
    "tmp/.hidden/x",
    "var/tmp/x",
    "run/banger/opencode.env",
    "var/lib/apt/lists/a_dists_b",
    "var/cache/apt/archives/a.deb",
    "var/cache/debconf/passwords.dat",
    "var/cache/apk/a.apk",
    "var/cache/xbps/a.xbps",
    "var/db/xbps/https___repo/x86_64-repodata",
    "home/me/.bash_history",
    "home/me/.ssh/id_ed25519",
    "home/me/.ssh/known_hosts.old",
    "home/me/.aws/credentials",
    "home/me/.local/share/opencode/auth.json",
    "root/.ssh/id_ed25519",
    "root/plans/notes",
)
KEPT = (
    "etc/ssh/sshd_config",
    "etc/fstab",
    "var/cache/debconf/config.dat",
    "var/db/xbps/pkgdb-0.38.plist",
    "var/lib/dpkg/status",
    "home/me/.ssh/authorized_keys",
    "home/me/.ssh/id_ed25519.pub",
    "home/me/plans/.bash_history",
    "srv/log",
)


def _write(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"content of {name}\n")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    made = tmp_path / "root"
    _write(made, *GONE, *KEPT, "etc/machine-id", "etc/hostname")
    return made


def _tidy(root: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    argv = [str(BUSYBOX), "sh", "-s"]
    env = {"PATH": os.environ["PATH"], "ROOT": str(root), **variables}
    return subprocess.run(argv, input=tidy().decode(), env=env, capture_output=True, text=True, check=False, timeout=60)


def _files(root: Path) -> dict[str, str]:
    found = {}
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        if path.is_symlink():
            found[name] = f"-> {path.readlink()}"
        elif path.is_file():
            found[name] = path.read_text()
    return found


def test_what_is_one_machines_or_one_persons_is_gone_and_the_rest_is_not(root: Path) -> None:
    done = _tidy(root)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    wanted = {name: f"content of {name}\n" for name in KEPT} | {"etc/machine-id": "", "etc/hostname": "banger\n"}
    assert _files(root) == wanted
    for directory in ("var/log/apt", "var/log/journal", "tmp", "var/cache/apt", "root", "var/lib/apt/lists"):
        assert (root / directory).is_dir()


def test_the_home_of_root_stays_when_it_shall(root: Path) -> None:
    assert _tidy(root, KEEP_ROOT="1").returncode == 0
    assert (root / "root/plans/notes").exists()
    assert (root / "root/.ssh/id_ed25519").exists()


def test_another_home_takes_the_place_of_roots(root: Path, tmp_path: Path) -> None:
    _write(tmp_path / "tree/home", ".profile", ".ssh/authorized_keys")
    assert _tidy(root, TREE=str(tmp_path / "tree")).returncode == 0
    assert sorted(_files(root / "root")) == [".profile", ".ssh/authorized_keys"]
    assert (root / "root").stat().st_mode & 0o777 == 0o700


def test_where_there_was_no_file_none_is_made(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    assert _tidy(tmp_path).returncode == 0
    assert _files(tmp_path) == {}


@pytest.mark.parametrize("deep", [True, False])
@pytest.mark.parametrize("absolute", [True, False])
def test_a_root_full_of_links_loses_nothing_elsewhere(tmp_path: Path, absolute: bool, deep: bool) -> None:
    """Every directory that something is taken out of is a link, in the root or out of it."""
    root, outside = tmp_path / "root", tmp_path / "outside"
    inside = root / "precious"
    for place in (outside, inside):
        _write(place, *(f"{number}/{Path(name).name}" for number, name in enumerate(GONE)), "machine-id", "hostname")
        _write(place, "ssh_host_rsa_key", "passwords.dat", "a/b/x-repodata", ".bash_history", "known_hosts", "id_rsa")
    before = _files(outside), _files(inside)
    names = {str(Path(name).parent) for name in GONE} | {"var/lib/dbus", "home/me/.ssh", "home/other", "var/run"}
    for name in sorted(names, reverse=deep):
        link = root / name
        if name.startswith("root") or link.exists() or link.is_symlink() or link.parent.resolve() != link.parent:
            continue  # as to root's home, see below
        link.parent.mkdir(parents=True, exist_ok=True)
        target = outside if absolute else inside
        link.symlink_to(target if absolute else os.path.relpath(target, link.parent))
    (root / "root").mkdir()
    assert _tidy(root).returncode == 0
    assert (_files(outside), _files(inside)) == before


def test_files_that_are_links_go_themselves(tmp_path: Path) -> None:
    root = tmp_path / "root"
    _write(root, "etc/passwd", "etc/shadow")
    (tmp_path / "outside").write_text("mine")
    links = ("etc/machine-id", "etc/hostname", "etc/resolv.conf", "var/lib/systemd/random-seed", "home/me/.netrc")
    for name in links:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).symlink_to(tmp_path / "outside")
    (root / "tmp").mkdir()
    (root / "tmp/up").symlink_to("../etc")
    assert _tidy(root).returncode == 0
    assert (tmp_path / "outside").read_text() == "mine"
    assert sorted(_files(root)) == ["etc/hostname", "etc/machine-id", "etc/passwd", "etc/shadow"]
    assert not (root / "etc/machine-id").is_symlink()


def test_a_file_with_other_names_stays_under_those(tmp_path: Path) -> None:
    _write(tmp_path, "etc/passwd", "var/log/x", "etc/machine-id")
    for name in ("var/log/hard", "etc/hostname"):
        os.link(tmp_path / "etc/passwd", tmp_path / name)
    assert _tidy(tmp_path).returncode == 0
    assert _files(tmp_path) == {
        "etc/passwd": "content of etc/passwd\n",
        "etc/hostname": "banger\n",
        "etc/machine-id": "",
    }


def test_names_that_look_like_words_of_a_command_are_names(tmp_path: Path) -> None:
    _write(tmp_path, "etc/passwd", "tmp/-rf", "tmp/a b", "var/log/-e\nx", "home/$(touch x)/.netrc", "home/-f/.netrc")
    assert _tidy(tmp_path).returncode == 0
    assert sorted(_files(tmp_path)) == ["etc/passwd"]


def test_a_home_that_is_a_link_is_not_said_to_be_left_out(tmp_path: Path) -> None:
    _write(tmp_path, "var/roothome/secret")
    (tmp_path / "root").symlink_to("var/roothome")
    done = _tidy(tmp_path)
    assert done.returncode == 1
    assert done.stdout == "cannot take out: root\n"


def test_without_a_root_nothing_is_done() -> None:
    assert _tidy(Path("/nonexistent")).returncode == 1
    done = subprocess.run([str(BUSYBOX), "sh", "-s"], input=tidy(), env={"ROOT": ""}, capture_output=True, check=False)
    assert done.returncode == 1
