"""What is known of Firecracker's releases, and the digests that are pinned."""

import re
from pathlib import Path

import pytest

from banger.engine.capabilities import firecracker_capabilities, new_enough, parse_version, qemu_capabilities
from banger.engine.releases import FORGE, RELEASES, archive_url, check_version, recommended
from banger.model.errors import Invalid


@pytest.mark.parametrize(
    ("version", "hangs"),
    [("1.8.0", False), ("1.15.1", False), ("1.16.0", True), ("1.16.1", True), ("1.17.0-dev", True), ("1.17.0", False)],
)
def test_the_releases_whose_vsock_hangs_after_a_pause_are_known(version: str, hangs: bool) -> None:
    assert firecracker_capabilities(version).vsock_pause_hang is hangs


@pytest.mark.parametrize(
    ("version", "enough"),
    [("0.24.5", False), ("1.7.0", False), ("1.8.0-dev", False), ("1.8.0", True), ("1.10.1", True), ("2.0.0", True)],
)
def test_a_release_that_describes_devices_by_acpi_is_new_enough(version: str, enough: bool) -> None:
    assert new_enough(version) is enough
    assert firecracker_capabilities(version).acpi is enough


def test_only_our_engine_pauses_a_guest_before_it_hears_of_a_full_disk() -> None:
    assert qemu_capabilities("7.2.0").stops_when_full
    assert not firecracker_capabilities("1.15.1").stops_when_full


def test_versions_compare_as_numbers() -> None:
    texts = ["1.8.0", "1.9.1", "1.10.0", "1.17.0-dev", "v1.17.0", "1.17.1"]
    assert sorted(texts, key=parse_version) == texts


@pytest.mark.parametrize("text", ["", "1.2", "1.2.3.4", "1.x.3", "../1.2.3", "1.2.3/..", "1.2.3\n", "9" * 50])
def test_what_is_no_version_is_refused(text: str) -> None:
    with pytest.raises(Invalid, match="not a version"):
        parse_version(text)


def test_the_two_engines_differ_where_callers_ask() -> None:
    ours, theirs = qemu_capabilities("0.1.0"), firecracker_capabilities("1.15.1")
    assert (ours.needs_kvm, ours.user_network, ours.qcow2, ours.jailer) == (False, True, True, False)
    assert (theirs.needs_kvm, theirs.user_network, theirs.qcow2, theirs.jailer) == (True, False, False, True)
    assert theirs.api_version == "1.15.1"


def test_the_pinned_table_is_well_formed_and_says_where_each_digest_was_found() -> None:
    for release in RELEASES:
        for digest in (release.archive, release.firecracker, release.jailer):
            assert digest is None or re.fullmatch("sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}", digest)
        assert release.recorded
        assert check_version(release.version) == release.version
    versions = [parse_version(release.version) for release in RELEASES]
    assert versions == sorted(versions, reverse=True)
    assert len(set(versions)) == len(versions)


def test_the_recommended_release_is_pinned_and_does_not_hang() -> None:
    release = recommended()
    assert release in RELEASES
    assert release is not None
    assert not firecracker_capabilities(release.version).vsock_pause_hang


def test_the_page_has_the_pinned_digests() -> None:
    page = (Path(__file__).parents[3] / "docs" / "engines.md").read_text()
    for release in RELEASES:
        assert f"| {release.version} | `{release.archive.partition(':')[2]}` |" in page


def test_a_mirror_has_the_forges_names() -> None:
    assert archive_url("1.9.9", None) == f"{FORGE}/v1.9.9/firecracker-v1.9.9-x86_64.tgz"
    assert archive_url("1.9.9", "http://m/fc/") == "http://m/fc/v1.9.9/firecracker-v1.9.9-x86_64.tgz"
