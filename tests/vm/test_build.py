"""`banger image build`, for real: packages from their mirror, files, scripts; what an earlier build has done; failures.

The image is built once; what fails or is cancelled begins from its layers.
"""

import json
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.home import Home
from tests.vm.conftest import track

BUILD_S = 900  # the lists of packages alone take a minute to read on an emulated processor
PACKAGES = ("jq", "tree", "file")
SETUP = """set -e
test "$BANGER_BUILD" = 1
jq --null-input '{made: "by a script"}' >/etc/made.json
mkdir -p /root/project
echo "from the build" >/root/project/note
echo 'it went well'
"""
RECIPE = """
name = "tools"
from = "debian"
packages = ["jq", "tree"]
package_file = "packages.txt"
copy = ["site:/opt/site", "run.sh:/usr/local/bin/run-site"]
scripts = ["setup.sh"]
"""


@pytest.fixture(scope="module")
def home(images: Path) -> Iterator[Home]:
    """One whose images are in the store of all tests, but for those that are built here."""
    made = track(Home(images=images))
    try:
        yield made
    finally:
        made.run("image", "delete", "--yes", "tools", status=None)
        made.close()


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recipe")
    (folder / "tools.toml").write_text(RECIPE)
    (folder / "packages.txt").write_text("file  # what a file is\n")
    (folder / "site" / "deep").mkdir(parents=True)
    (folder / "site" / "deep" / "page").write_text("hello\n")
    (folder / "site" / "latest").symlink_to("deep/page")
    (folder / "run.sh").write_text("#!/bin/sh\ncat /opt/site/latest\n")
    (folder / "run.sh").chmod(0o755)
    (folder / "setup.sh").write_text(SETUP)
    return folder / "tools.toml"


@pytest.fixture(scope="module")
def built(home: Home, recipe: Path) -> dict[str, Any]:
    """The document that the first build printed, and what it told meanwhile."""
    with home.start("image", "build", str(recipe), "--json") as process:
        printed, told = process.communicate(timeout=BUILD_S)
    assert process.returncode == 0, told.decode()
    document: dict[str, Any] = json.loads(printed)
    return {**document, "told": told.decode()}


def run_in(home: Home, vm: str, script: str) -> str:
    return home.run("vm", "exec", vm, "--", "sh", "-c", script).stdout.decode()


def test_the_image_is_what_its_recipe_says_and_boots(home: Home, built: dict[str, Any]) -> None:
    assert built["image"]["name"] == "tools"
    assert built["image"]["parents"] == ["debian"]
    assert "| it went well" in built["told"]
    assert built["told"].count("Setting up jq ") == 1, "each line is told once"
    assert "Setting up jq " in Path(built["log"]).read_text()
    came = {change["name"] for change in built["packages"] if not change["before"]}
    assert came >= set(PACKAGES)
    manifest = {package["name"] for package in json.loads((home.state / "images/tools/packages.json").read_bytes())}
    assert manifest >= {*PACKAGES, "bash"}
    assert built["image"]["packages"] == home.json("image", "show", "debian")["packages"] + len(came)

    home.run("vm", "create", "--name", "new", "--image", "tools", "--memory", "512M")
    assert run_in(home, "new", "jq -r .made /etc/made.json; run-site; cat /root/project/note").splitlines() == [
        "by a script",
        "hello",
        "from the build",
    ]
    installed = run_in(home, "new", f"dpkg-query -W -f '${{Package}} ${{db:Status-Status}}\\n' {' '.join(PACKAGES)}")
    assert sorted(installed.splitlines()) == sorted(f"{name} installed" for name in PACKAGES)
    assert run_in(home, "new", "systemctl is-active banger-agent ssh").split() == ["active", "active"]
    # nothing of the machine that it was built in
    assert run_in(home, "new", "ls -A /var/lib/apt/lists /var/tmp; hostname").split() == [
        "/var/lib/apt/lists:",
        "/var/tmp:",
        "new",
    ]
    home.run("vm", "delete", "--yes", "new")
    assert home.json("vm", "list") == []


def test_a_failing_script_keeps_the_vm_and_leaves_no_image(home: Home, built: dict[str, Any], recipe: Path) -> None:
    (recipe.parent / "setup.sh").write_text("echo before\necho 'this is why' >&2\nexit 7\n")
    done = home.run("image", "build", "broken", "--recipe", str(recipe), "--keep-on-failure", status=1)
    told = done.stderr.decode()
    assert [line.split()[1] for line in told.splitlines() if line.startswith("  cached ")] == [
        "packages",
        "copy",
        "copy",
    ]
    assert "error: the step 'script setup.sh' failed: it ended with status 7: this is why" in told
    assert "output | before" in told
    (vm,) = home.json("vm", "list")
    assert f"banger vm ssh {vm['name']}" in told
    assert f"banger vm delete {vm['name']}" in told
    assert (vm["state"], vm["build"], vm["image"]) == ("running", "", "debian")
    assert run_in(home, vm["name"], "jq --version; cat /opt/site/latest").splitlines()[1:] == ["hello"]
    assert [image["name"] for image in home.json("image", "list") if image["name"] == "broken"] == []
    home.run("vm", "delete", "--yes", vm["name"])


def test_a_cancelled_build_leaves_nothing(home: Home, built: dict[str, Any], recipe: Path) -> None:
    (recipe.parent / "setup.sh").write_text("echo waiting for a signal\nsleep 600\n")
    with home.start("image", "build", "never", "--recipe", str(recipe), "--keep-on-failure") as process:
        _until(process, "waiting for a signal")
        (vm,) = home.json("vm", "list")
        assert vm["build"] == "never"
        assert "for the build of the image never" in home.run("vm", "list").stdout.decode()
        assert "is busy: image.build" in home.error("vm", "delete", "--yes", vm["name"], status=4)
        process.send_signal(signal.SIGINT)
        _, rest = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "image.build was cancelled" in rest.decode()
    assert home.json("vm", "list") == []
    assert {image["name"] for image in home.json("image", "list")} & {"never", "broken"} == set()
    assert not list((home.state / "images").glob(".tmp-*"))
    assert not list((home.state / "vms").iterdir())


def _until(process: "subprocess.Popen[bytes]", text: str) -> None:
    assert process.stderr is not None
    for line in process.stderr:
        if text in line.decode():
            return
    raise AssertionError(f"it ended without saying {text!r}")
