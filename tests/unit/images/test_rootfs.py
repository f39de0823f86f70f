from pathlib import Path

import pytest

from banger.images.rootfs import Seed, check_root, clean, installed_packages, plant
from banger.model.errors import Invalid

STATUS = """\
Package: zlib1g
Status: install ok installed
Architecture: amd64
Version: 1:1.2

Package: gone
Status: deinstall ok config-files
Architecture: amd64
Version: 1

Package: adduser
Status: install ok installed
Architecture: all
Version: 3.1
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    for name in (
        "etc/ssh",
        "usr/bin",
        "usr/sbin",
        "tmp/x",
        "var/lib/apt/lists",
        "var/lib/dpkg",
        "run",
    ):
        (root / name).mkdir(parents=True)
    (root / "sbin").symlink_to("usr/sbin")
    (root / "etc/shadow").write_text("root:$y$hash:19000::::::\ndaemon:*:19000::::::\n")
    (root / "etc/ssh/ssh_host_ed25519_key").write_text("secret")
    (root / "etc/machine-id").write_text("uninitialized\n")
    (root / "etc/resolv.conf").write_text("nameserver 192.0.2.1\n")
    (root / "etc/hostname").write_text("the-host\n")
    (root / "var/lib/apt/lists/list").write_text("x")
    (root / "var/lib/dpkg/status").write_text(STATUS)
    return root


def test_cleaning_leaves_no_identity_and_no_password(root: Path) -> None:
    clean(root)
    assert (root / "etc/machine-id").read_bytes() == b""
    assert not list((root / "etc/ssh").iterdir())
    assert not (root / "etc/resolv.conf").exists()
    assert (root / "etc/hostname").read_text() == "banger\n"
    assert (root / "etc/shadow").read_text().splitlines() == ["root:*:19000::::::", "daemon:*:19000::::::"]
    assert list((root / "tmp").iterdir()) == list((root / "var/lib/apt/lists").iterdir()) == []


def test_logins_bring_no_locales_that_the_guest_has_not(root: Path) -> None:
    config = root / "etc/ssh/sshd_config"
    config.write_text("UsePAM yes\nAcceptEnv LANG LC_*\nSubsystem sftp x\n")
    clean(root)
    assert config.read_text() == "UsePAM yes\n#AcceptEnv LANG LC_*\nSubsystem sftp x\n"


def test_the_seed_replaces_files_and_links_with_its_modes(root: Path) -> None:
    (root / "etc/motd").symlink_to("/etc/elsewhere")
    plant(
        root,
        Seed(
            files={"/etc/motd": (b"hello", 0o640), "/root/.ssh/authorized_keys": (b"key", 0o600)},
            symlinks={"/etc/systemd/system/a.timer": "/dev/null"},
        ),
    )
    assert (root / "etc/motd").read_bytes() == b"hello"
    assert not (root / "etc/motd").is_symlink()
    assert (root / "etc/motd").stat().st_mode & 0o777 == 0o640
    assert (root / "root/.ssh/authorized_keys").stat().st_mode & 0o777 == 0o600
    assert str((root / "etc/systemd/system/a.timer").readlink()) == "/dev/null"


def test_links_of_directories_stay_inside_the_root(root: Path, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (root / "absolute").symlink_to("/usr/bin")
    (root / "climbing").symlink_to("../../../../usr/sbin")
    (root / "host").symlink_to(tmp_path / "outside")
    plant(root, Seed(files={"/absolute/a": (b"1", 0o644), "/climbing/b": (b"2", 0o644), "/host/c": (b"3", 0o644)}))
    assert (root / "usr/bin/a").read_bytes() == b"1"
    assert (root / "usr/sbin/b").read_bytes() == b"2"
    assert list((tmp_path / "outside").iterdir()) == []


@pytest.mark.parametrize("name", ["etc/relative", "/../up", "/etc/../../up", "/", "/loop/x", "/etc/ssh"])
def test_a_seed_path_that_is_no_plain_file_of_the_root_is_refused(root: Path, name: str) -> None:
    (root / "loop").symlink_to("/loop")
    with pytest.raises(Invalid):
        plant(root, Seed(files={name: (b"", 0o644)}))


def test_only_installed_packages_are_listed_in_order(root: Path) -> None:
    assert installed_packages(root) == [
        {"name": "adduser", "version": "3.1", "arch": "all"},
        {"name": "zlib1g", "version": "1:1.2", "arch": "amd64"},
    ]


def test_a_root_without_init_is_not_published(root: Path) -> None:
    clean(root)
    with pytest.raises(Invalid, match="/sbin/init"):
        check_root(root)
