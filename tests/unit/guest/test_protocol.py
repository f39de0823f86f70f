"""Frames, and the documents made from what a guest sends."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from banger.guest import protocol
from banger.model.guest import ExecExit, ExecRequest, Health, Stream

FRAMES = st.lists(st.tuples(st.integers(0, 5), st.binary(max_size=300)), max_size=8)


@given(FRAMES, st.lists(st.integers(1, 50)))
def test_frames_survive_any_cutting_of_the_stream(frames: list[tuple[int, bytes]], cuts: list[int]) -> None:
    data = b"".join(protocol.encode(*frame) for frame in frames)
    decoder, found = protocol.Decoder(), []
    for size in [*cuts, len(data)]:
        decoder.feed(data[:size])
        data = data[size:]
        while (frame := decoder.next()) is not None:
            found.append(frame)
    assert found == frames


@pytest.mark.parametrize("header", [(6, 0), (255, 0), (0, 65537), (1, 0xFFFFFFFF)])
def test_impossible_headers_are_refused_before_their_payload(header: tuple[int, int]) -> None:
    with pytest.raises(protocol.ProtocolError):
        protocol.Decoder(protocol.HEADER.pack(*header)).next()


def test_payload_beyond_the_limit_is_not_sent() -> None:
    with pytest.raises(protocol.ProtocolError):
        protocol.encode(protocol.STDIN, bytes(protocol.MAX_PAYLOAD + 1))


def test_host_and_wire_number_the_streams_alike() -> None:
    assert {member.name: member.value for member in Stream} == {
        name: getattr(protocol, name) for name in ("STDIN", "STDOUT", "STDERR", "EXIT", "RESIZE", "SIGNAL")
    }


@pytest.mark.parametrize(
    ("document", "code"),
    [
        (b'{"status":0}', 0),
        (b'{"status":3}', 3),
        (b'{"signal":9}', 137),
        (b'{"error":"x","errno":2}', 127),
        (b'{"error":"x","errno":13}', 126),
        (b'{"timeout":true}', 124),
    ],
)
def test_exit_codes_follow_the_shell(document: bytes, code: int) -> None:
    assert msgspec.json.decode(document, type=ExecExit).exit_code() == code


@pytest.mark.parametrize(
    "document",
    [
        b"{}",
        b'{"status":256}',
        b'{"status":-1}',
        b'{"signal":0}',
        b'{"status":0,"signal":9}',
        b'{"timeout":false}',
        b"3",
    ],
)
def test_nonsense_is_no_exit(document: bytes) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(document, type=ExecExit)


@pytest.mark.parametrize(
    "document", [b'{"argv":[]}', b'{"argv":["a"],"x":1}', b"{}", b'{"argv":["a"],"rows":0}', b'{"argv":[1]}']
)
def test_exec_request_is_strict(document: bytes) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(document, type=ExecRequest)


def test_health_of_a_newer_agent_is_understood() -> None:
    boot_id = "0" * 8 + "-0000-0000-0000-" + "0" * 12
    document = {"status": "ok", "boot_id": boot_id, "uptime_s": 1, "agent_version": "2", "hostname": "h",
                "services": {}, "new": [1]}  # fmt: skip
    assert msgspec.json.decode(msgspec.json.encode(document), type=Health).agent_version == "2"
