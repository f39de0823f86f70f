"""The dev baseline's lists, and what is refused in one."""

import pytest

from banger.images.baseline import baseline, parse_baseline
from banger.images.debian import PACKAGES, DebianRequest, recipe_of
from banger.images.rootfs import Seed
from banger.model.errors import Invalid
from banger.model.image import BootstrapSpec


def test_debians_list_has_what_people_reach_for() -> None:
    found = set(baseline("debian"))
    assert {"git", "curl", "build-essential", "pkg-config", "ripgrep", "jq", "tmux", "nano", "sudo"} <= found
    assert {"ca-certificates", "xz-utils", "unzip", "less", "rsync", "bash-completion"} <= found


def test_comments_and_blank_lines_are_left_out_and_the_order_stays() -> None:
    assert parse_baseline("# tools\n\ngit\n  g++ # a compiler\n\npy3-pip\n", "alpine") == ("git", "g++", "py3-pip")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("git\ncurl wget\n", "line 2"),
        ("git\n\n-o=x\n", "line 3"),
        ("git,curl\n", "line 1"),
        ("/tmp/evil.deb\n", "line 1"),
        ("git\n# again\ngit\n", "line 1 already"),
        ("# nothing\n", "names no package"),
    ],
)
def test_a_bad_list_is_refused_with_its_line(text: str, said: str) -> None:
    with pytest.raises(Invalid, match=said):
        parse_baseline(text, "debian")


def test_a_distribution_without_a_list_is_told_the_way_around() -> None:
    with pytest.raises(Invalid) as caught:
        baseline("plan9")
    assert "--minimal" in caught.value.hint


def test_minimal_is_what_every_image_has_and_nothing_else() -> None:
    minimal = recipe_of(DebianRequest(name="d", seed=Seed(), minimal=True)).packages
    full = recipe_of(DebianRequest(name="d", seed=Seed(), extra_packages=("git", "cowsay"))).packages
    assert tuple(minimal) == PACKAGES
    assert full == list(dict.fromkeys([*PACKAGES, *baseline("debian"), "cowsay"]))


@pytest.mark.parametrize(
    ("spec", "image", "with_opencode"),
    [
        (BootstrapSpec(distro="debian"), "debian", True),
        (BootstrapSpec(distro="debian", minimal=True), "debian-minimal", False),
        (BootstrapSpec(distro="debian", minimal=True, opencode=True, name="x"), "x", True),
        (BootstrapSpec(distro="debian", opencode=False), "debian", False),
    ],
)
def test_the_flavours_have_names_and_opencode_of_their_own(
    spec: BootstrapSpec, image: str, with_opencode: bool
) -> None:
    assert (spec.image, spec.with_opencode) == (image, with_opencode)
