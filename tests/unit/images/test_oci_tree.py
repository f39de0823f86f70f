"""Trees out of images: nothing outside them is touched, and they become what a machine needs."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from banger.images.oci_layout import Chosen, Config
from banger.images.oci_root import MAX_DEPTH, Measured, measure, root_bytes
from banger.images.oci_tree import ENVIRONMENT, POLICY, RECORD, Tree
from banger.images.rootfs import Seed
from banger.model.errors import Invalid, Unsupported
from banger.model.sizes import GIB, MIB
from banger.service.oci import check_complete
from banger.system.files import remove_tree

CHOSEN = Chosen("tools:1", "sha256:00")


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    root = tmp_path / "tree"
    for name in ("usr/bin", "usr/sbin", "usr/lib/systemd", "etc/ssh", "var/lib/dpkg"):
        (root / name).mkdir(parents=True)
    for name in ("bin", "sbin", "lib"):
        (root / name).symlink_to(f"usr/{name}")
    (root / "usr/lib/systemd/systemd").write_text("")
    (root / "usr/sbin/init").symlink_to("/lib/systemd/systemd")
    (root / "usr/bin/python3.11").write_text("")
    (root / "usr/bin/python3").symlink_to("python3.11")
    (root / "usr/bin/sh").write_text("")
    (root / "etc/os-release").write_text('ID=debian\nVERSION_ID="12"\nPRETTY_NAME="Debian GNU/Linux 12"\n')
    found = Tree(root)
    found.make_directories()
    return found


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A file of the host's that links in the tree lead to."""
    file = tmp_path / "outside/shadow"
    file.parent.mkdir()
    file.write_text("root:secret:1::::::\n")
    return file


def test_links_are_followed_as_inside_the_tree(tree: Tree) -> None:
    assert tree.inside(tree.end_of("/sbin/init") or Path()) == "/usr/lib/systemd/systemd"
    assert tree.python() == (3, 11)
    assert tree.missing() == {}
    assert tree.release().name == "Debian GNU/Linux 12"


def test_a_link_that_leads_out_is_not_read(tree: Tree, outside: Path) -> None:
    (tree.root / "etc/os-release").unlink()
    (tree.root / "etc/os-release").symlink_to(outside)
    assert tree.read("/etc/os-release") is None
    (tree.root / "etc/os-release").unlink()
    (tree.root / "etc/os-release").symlink_to("../" * 20 + str(outside).lstrip("/"))
    assert tree.read("/etc/os-release") is None


def test_links_in_circles_are_refused(tree: Tree) -> None:
    (tree.root / "etc/a").symlink_to("b")
    (tree.root / "etc/b").symlink_to("/etc/a")
    with pytest.raises(Invalid, match="circles"):
        tree.read("/etc/a")
    with pytest.raises(Invalid):
        tree.read("/etc/a/c")


@pytest.mark.parametrize("what", ["shadow", "machine-id", "hostname", "resolv.conf"])
def test_a_link_in_place_of_a_file_is_replaced_and_not_followed(tree: Tree, outside: Path, what: str) -> None:
    (tree.root / "etc" / what).symlink_to(outside)
    tree.settle(Seed(files={"/etc/hostname": (b"banger\n", 0o644)}))
    assert outside.read_text() == "root:secret:1::::::\n"
    assert not (tree.root / "etc" / what).is_symlink()


def test_a_directory_that_leads_out_stays_as_it_is(tree: Tree, outside: Path) -> None:
    (tree.root / "etc/ssh").rmdir()
    (tree.root / "etc/ssh").symlink_to(outside.parent)
    (outside.parent / "ssh_host_rsa_key").write_text("")
    tree.settle(Seed())
    assert len(list(outside.parent.iterdir())) == 2


@pytest.mark.parametrize("name", ["etc", "proc", "dev", "tmp", "var"])
@pytest.mark.parametrize("instead", ["link", "file"])
def test_a_tree_whose_own_directories_are_none_is_refused(tmp_path: Path, name: str, instead: str) -> None:
    (tmp_path / "tree").mkdir()
    place = tmp_path / "tree" / name
    place.symlink_to("/oldroot") if instead == "link" else place.write_text("")
    with pytest.raises(Invalid, match=f"/{name}"):
        Tree(tmp_path / "tree").make_directories()


def test_what_is_in_the_way_of_bangers_files_is_told(tree: Tree) -> None:
    (tree.root / "usr/lib/banger").write_text("")
    with pytest.raises(Invalid, match="cannot be put"):
        tree.settle(Seed(files={"/usr/lib/banger/x": (b"", 0o644)}))


def test_what_is_one_machines_is_taken_out(tree: Tree) -> None:
    for name, content in {
        "etc/shadow": "root::1::::::\nme:secret:1::::::\n",
        "etc/ssh/ssh_host_rsa_key": "key",
        "etc/machine-id": "0123",
        ".dockerenv": "",
        "tmp/left": "",
    }.items():
        (tree.root / name).write_text(content)
    tree.settle(Seed())
    assert (tree.root / "etc/shadow").read_text() == "root:*:1::::::\nme:secret:1::::::\n"
    assert (tree.root / "etc/machine-id").read_bytes() == b""
    for name in ("etc/ssh/ssh_host_rsa_key", ".dockerenv", "tmp/left"):
        assert not (tree.root / name).exists()


@pytest.mark.parametrize(
    ("policy", "stays"), [("#!/bin/sh\n# for docker\nexit 101\n", False), ("#!/bin/sh\nexit 0\n", True)]
)
def test_a_container_may_start_no_services_and_a_machine_may(tree: Tree, policy: str, stays: bool) -> None:
    tree.write(POLICY, policy.encode(), 0o755)
    tree.settle(Seed())
    assert (tree.read(POLICY) is not None) == stays


def test_variables_reach_a_shell_as_they_are(tree: Tree) -> None:
    odd = "it's $HOME; `touch /tmp/x` \"\\ \n$(id)"
    env = [f"ODD={odd}", "PATH=/opt/bin:/usr/bin", "HOME=/elsewhere", "not a name=1", "EMPTY=", "ODD-1=x", "NOTHING"]
    tree.keep_config(Config(env=env), CHOSEN)
    script = '. "$1"; printf "%s|" "$ODD" "$PATH" "$EMPTY" "$HOME"'
    done = subprocess.run(
        ["/bin/sh", "-c", script, "sh", str(tree.root / ENVIRONMENT.lstrip("/"))],
        env={"HOME": "/root"}, capture_output=True, check=True, text=True,
    )  # fmt: skip
    assert done.stdout == f"{odd}|/opt/bin:/usr/bin||/root|"
    assert done.stderr == ""


def test_what_a_machine_does_not_keep_is_told_and_on_record(tree: Tree) -> None:
    config = Config(entrypoint=["/run me"], cmd=["--now"], working_dir="/srv", user="app", exposed_ports={})
    notes = tree.keep_config(config, CHOSEN)
    assert "not kept by a machine: entrypoint '/run me'" in notes
    record = json.loads((tree.root / RECORD.lstrip("/")).read_text())
    assert (record["entrypoint"], record["user"], record["digest"]) == (["/run me"], "app", "sha256:00")
    assert not (tree.root / ENVIRONMENT.lstrip("/")).exists()


@pytest.mark.parametrize(
    ("broken", "package"),
    [("usr/sbin/init", "systemd-sysv"), ("usr/bin/python3", "python3"), ("usr/bin/sh", "dash")],
)
def test_without_what_a_machine_needs_a_tree_is_refused(tree: Tree, broken: str, package: str) -> None:
    (tree.root / broken).unlink()
    assert list(tree.missing()) == [package]
    with pytest.raises(Unsupported, match="Debian GNU/Linux 12") as caught:
        check_complete(tree, by_apt=True)
    assert "--no-install" in caught.value.hint
    with pytest.raises(Unsupported) as caught:
        check_complete(tree, by_apt=False)
    assert "--no-install" not in caught.value.hint


def test_an_old_python_is_refused(tree: Tree) -> None:
    (tree.root / "usr/bin/python3").unlink()
    (tree.root / "usr/bin/python3").symlink_to("python3.7")
    (tree.root / "usr/bin/python3.7").write_text("")
    with pytest.raises(Unsupported, match=r"3\.7"):
        check_complete(tree, by_apt=False)


def test_another_init_is_refused(tree: Tree) -> None:
    (tree.root / "usr/sbin/init").unlink()
    (tree.root / "usr/sbin/init").symlink_to("/bin/busybox")
    with pytest.raises(Unsupported, match="systemd"):
        check_complete(tree, by_apt=False)


def test_a_tree_is_measured_in_blocks(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * 5000)
    (tmp_path / "d").mkdir()
    (tmp_path / "d/l").symlink_to("/")
    measured = measure(tmp_path)
    assert measured.inodes == 3
    assert 8192 + 4096 <= measured.bytes <= 10 * 4096


@pytest.mark.parametrize("depth", [MAX_DEPTH + 1, 1500])
def test_directories_without_an_end_are_refused_and_can_be_removed(tmp_path: Path, depth: int) -> None:
    import asyncio

    top = tmp_path / "tree"
    top.mkdir()
    descriptor = os.open(top, os.O_RDONLY)
    for _ in range(depth):  # by descriptors: the whole path is too long for one call
        os.mkdir("d", dir_fd=descriptor)
        deeper = os.open("d", os.O_RDONLY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = deeper
    os.close(descriptor)
    with pytest.raises(Invalid, match="in each other"):
        measure(top)
    asyncio.run(remove_tree(top))
    assert list(tmp_path.iterdir()) == []


def test_a_root_is_as_large_as_is_needed_or_wanted() -> None:
    assert root_bytes(Measured(100 * MIB, 1000), None) == 4 * GIB
    assert root_bytes(Measured(6 * GIB, 1000), None) == 8 * GIB
    assert root_bytes(Measured(100 * MIB, 1_000_000), None) > 16 * GIB  # so many files need as many inodes
    assert root_bytes(Measured(100 * MIB, 1000), 2 * GIB) == 2 * GIB
    with pytest.raises(Invalid, match="does not fit") as caught:
        root_bytes(Measured(6 * GIB, 1000), 2 * GIB)
    assert "--size 7424M" in caught.value.hint
