"""What host and agent agree on: ports, limits, and the frames of an exec stream. Standard library only.

A frame is a header of five bytes, kind (u8) and payload length (u32, big-endian), then the payload of at
most 64 KiB. docs/guest.md describes the whole API.
"""

from struct import Struct

AGENT_VERSION = "2"

AGENT_PORT = 1024  # the agent listens here, in the guest
READY_PORT = 1025  # the host may listen here; the agent dials it once when it starts
HOST_CID = 2  # VMADDR_CID_HOST, <linux/vm_sockets.h>

EXEC_UPGRADE = "banger-exec"  # the Upgrade token of POST /exec
FILES_UPGRADE = "banger-files"  # the Upgrade token of POST /files
READY_WORD = b"ready"  # the dial-in line is b"ready <boot id>\n"

STDIN = 0  # host to guest: bytes; empty is end of file
STDOUT = 1  # guest to host: bytes
STDERR = 2  # guest to host: bytes, never with a terminal
EXIT = 3  # guest to host, the last frame: JSON {"status"} | {"signal"} | {"error", "errno"} | {"timeout"}
RESIZE = 4  # host to guest: JSON {"rows", "cols"}
SIGNAL = 5  # host to guest: JSON {"signal": "INT" or a number}

HEADER = Struct(">BI")
MAX_PAYLOAD = 65536
MAX_HEAD = 16 * 1024  # bytes of an HTTP request's first line and headers
MAX_BODY = 1024 * 1024  # bytes of a JSON body


class ProtocolError(ValueError):
    """The peer sent something that is not a frame."""


def encode(kind: int, payload: bytes = b"") -> bytes:
    """One frame. Raises `ProtocolError` when the payload is longer than `MAX_PAYLOAD` bytes."""
    check(kind, len(payload))
    return HEADER.pack(kind, len(payload)) + payload


def check(kind: int, length: int) -> None:
    """Raise `ProtocolError` unless a header with these fields may appear."""
    if kind > SIGNAL:
        raise ProtocolError(f"unknown frame kind {kind}")
    if length > MAX_PAYLOAD:
        raise ProtocolError(f"a frame of {length} bytes is longer than {MAX_PAYLOAD}")


class Decoder:
    """Cuts a byte stream into frames; holds at most one incomplete frame and what was fed with it."""

    def __init__(self, data: bytes = b"") -> None:
        self._data = bytearray(data)

    def feed(self, data: bytes) -> None:
        """Add bytes as they came from the stream."""
        self._data += data

    def next(self) -> "tuple[int, bytes] | None":
        """The next whole frame as (kind, payload), or None. Raises `ProtocolError`."""
        if len(self._data) < HEADER.size:
            return None
        kind, length = HEADER.unpack_from(self._data)
        check(kind, length)
        end = HEADER.size + length
        if len(self._data) < end:
            return None
        payload = bytes(self._data[HEADER.size : end])
        del self._data[:end]
        return kind, payload
