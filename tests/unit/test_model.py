"""Names, sizes, requests and errors."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from banger.model import errors
from banger.model.errors import BangerError, Invalid, from_dict
from banger.model.names import make_up_name, new_id, validate_name
from banger.model.sizes import parse_size, show_size
from banger.model.vm import VmSpec


@pytest.mark.parametrize("good", ["a", "0", "dev-1", "a" * 40, make_up_name(), new_id()])
def test_labels_are_names(good: str) -> None:
    assert validate_name(good) == good


@pytest.mark.parametrize("bad", ["", "-a", "a-", "A", "a_b", "a.b", "a" * 41, "a b", "é", "a\n", "../x"])
def test_anything_else_is_refused_with_a_hint(bad: str) -> None:
    with pytest.raises(Invalid) as caught:
        validate_name(bad)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("text", "expected"),
    [("512M", 512 << 20), ("1G", 1 << 30), ("1.5GiB", 3 << 29), ("64k", 65536), ("2", 2 << 20), ("0", 0)],
)
def test_sizes(text: str, expected: int) -> None:
    assert parse_size(text, "x", unit="m") == expected


@pytest.mark.parametrize("text", ["", "G", "-1G", "1X", "1e3", "one", "1 2", "nan", "0x10"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(Invalid):
        parse_size(text, "x")


@given(st.integers(0, 1 << 50))
def test_a_shown_size_is_close_to_the_size(count: int) -> None:
    assert abs(parse_size(show_size(count), "x") - count) <= count * 0.06


@pytest.mark.parametrize(
    "spec",
    [
        VmSpec(vcpu=0),
        VmSpec(vcpu=33),
        VmSpec(memory_mib=127),
        VmSpec(memory_mib=4097),
        VmSpec(memory_mib=-1),
        VmSpec(name="Bad_Name"),
        VmSpec(image="../debian"),
    ],
)
def test_impossible_machines_are_refused_with_a_hint(spec: VmSpec) -> None:
    with pytest.raises(Invalid) as caught:
        spec.check(host_memory_mib=4096)
    assert caught.value.hint


def test_the_limits_themselves_are_allowed() -> None:
    VmSpec(vcpu=1, memory_mib=128).check(host_memory_mib=4096)
    VmSpec(vcpu=32, memory_mib=4096, name="a" * 40).check(host_memory_mib=4096)


def leaves() -> list[type[BangerError]]:
    return [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, BangerError)]


@pytest.mark.parametrize("kind", leaves())
def test_an_error_crosses_the_wire_as_the_same_class(kind: type[BangerError]) -> None:
    sent = kind("what", hint="next", details={"a": [1]})
    got = from_dict(sent.to_dict())
    assert (type(got), got.message, got.hint, got.details) == (kind, "what", "next", {"a": [1]})


def test_every_error_of_the_daemon_reaches_the_client_as_a_kind_it_knows() -> None:
    """A code of its own, made up in some module, would reach the client as a defect with exit code 1."""
    import banger.daemon  # noqa: F401 - imports all that the daemon is made of

    pending, known = [BangerError], {kind.code for kind in leaves()}
    while pending:
        kind = pending.pop()
        pending += kind.__subclasses__()
        if not kind.__module__.startswith(("banger.client", "tests")):
            assert kind.code in known, kind
            assert issubclass(kind, type(from_dict(kind("what").to_dict())))
            assert from_dict(kind("what").to_dict()).exit_code == kind.exit_code


def test_exit_codes_are_the_contract() -> None:
    codes = {kind.code: kind.exit_code for kind in leaves()}
    assert codes == {
        "failed": 1,
        "invalid": 2,
        "not_found": 3,
        "conflict": 4,
        "busy": 4,
        "unsupported": 2,
        "host_requirement": 5,
        "command_failed": 1,
        "timeout": 6,
        "guest_unreachable": 6,
        "cancelled": 1,
        "internal": 1,
    }


def test_an_unknown_or_broken_error_document_still_makes_an_error() -> None:
    assert from_dict({"code": "from-the-future", "message": "m"}).message == "m"
    assert from_dict({"details": 3}).details == {}
