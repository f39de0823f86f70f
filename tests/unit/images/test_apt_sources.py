from pathlib import Path

import pytest

from banger.images.apt_sources import host_sources, mirror_source, parse_deb822, parse_one_line
from banger.model.errors import Invalid

KEY = "/usr/share/keyrings/debian-archive-keyring.gpg"
DEB822 = f"""\
# the archive
Types: deb deb-src
URIs: http://mirror.example/debian
Suites: bookworm
 bookworm-updates bookworm-backports
Components: main contrib
# a comment inside
Signed-By: {KEY}

Types: deb
URIs: https://vendor.example/apt
Suites: bookworm
Components: stable
Signed-By: /etc/apt/keyrings/vendor.gpg

Types: deb
URIs: https://user:secret@mirror.example/debian
Suites: bookworm
Components: main
Signed-By: {KEY}

Enabled: no
Types: deb
URIs: http://off.example/debian
Suites: bookworm
Components: main
Signed-By: {KEY}

Types: deb
URIs: http://next.example/debian
Suites: trixie
Components: main
Signed-By: {KEY}
"""


def test_only_debians_own_entries_of_the_release_are_taken() -> None:
    assert parse_deb822(DEB822, "bookworm") == [
        f"deb [signed-by={KEY}] http://mirror.example/debian bookworm main contrib",
        f"deb [signed-by={KEY}] http://mirror.example/debian bookworm-updates main contrib",
    ]


def test_one_line_entries_need_the_keyring_too() -> None:
    text = f"""
        deb [arch=amd64 signed-by={KEY}] http://mirror.example/debian bookworm main # comment
        # deb [signed-by={KEY}] http://off.example/debian bookworm main
        deb http://unsigned.example/debian bookworm main
        deb-src [signed-by={KEY}] http://mirror.example/debian bookworm main
        deb [signed-by={KEY}] http://mirror.example/debian bookworm $(reboot)
        deb [signed-by=/tmp/key.gpg] http://vendor.example/debian bookworm main
    """
    assert parse_one_line(text, "bookworm") == [f"deb [signed-by={KEY}] http://mirror.example/debian bookworm main"]


def test_a_host_of_another_release_lends_nothing(tmp_path: Path) -> None:
    (tmp_path / "apt/sources.list.d").mkdir(parents=True)
    (tmp_path / "apt/sources.list.d/debian.sources").write_text(DEB822)
    (tmp_path / "apt/sources.list.d/debian.sources.disabled").write_text(DEB822.replace("mirror", "other"))
    assert host_sources("bookworm", tmp_path) == []
    (tmp_path / "os-release").write_text("ID=debian\nVERSION_CODENAME=bookworm\n")
    assert len(host_sources("bookworm", tmp_path)) == 2
    (tmp_path / "os-release").write_text("ID=debian\nVERSION_CODENAME=trixie\n")
    assert host_sources("bookworm", tmp_path) == []


def test_a_named_mirror_is_signed_by_debian() -> None:
    assert mirror_source("https://mirror.example/debian", "bookworm") == [
        f"deb [signed-by={KEY}] https://mirror.example/debian bookworm main"
    ]


@pytest.mark.parametrize(
    "mirror",
    [
        "ftp://mirror.example/",
        "http://a b/",
        "http://u:p@mirror.example/",
        "-o",
        "http://[::1/",
        "http://m.example/\nx",
    ],
)
def test_a_mirror_that_could_mean_more_than_a_url_is_refused(mirror: str) -> None:
    with pytest.raises(Invalid):
        mirror_source(mirror, "bookworm")
