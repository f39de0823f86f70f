"""The packets of the socket device (virtio 1.2, section 5.10.6): header, operations, and header placement."""

import struct
from collections.abc import Iterable
from typing import Final, NamedTuple

from banger.qemu.vsock.memory import BadRing

HEADER: Final = struct.Struct("<QQIIIHHIII")
HEADER_SIZE: Final = HEADER.size
HOST_CID: Final = 2
STREAM: Final = 1
MASK: Final = 0xFFFFFFFF  # the counters of the credit scheme are 32 bits and wrap

REQUEST: Final = 1
RESPONSE: Final = 2
RST: Final = 3
SHUTDOWN: Final = 4
RW: Final = 5
CREDIT_UPDATE: Final = 6
CREDIT_REQUEST: Final = 7

SHUT_RCV: Final = 1
SHUT_SEND: Final = 2
SHUT_BOTH: Final = 3


class Header(NamedTuple):
    """One packet's header; `allocated` and `forwarded` are the sender's credit figures in bytes."""

    src_cid: int
    dst_cid: int
    src_port: int
    dst_port: int
    length: int
    kind: int
    op: int
    flags: int = 0
    allocated: int = 0
    forwarded: int = 0

    def pack(self) -> bytes:
        return HEADER.pack(*self)


def read_header(buffers: list[memoryview]) -> Header:
    """The header at the front of a chain, however it is split. Raises `BadRing` for a short chain."""
    first = buffers[0]
    if len(first) >= HEADER_SIZE:
        return Header._make(HEADER.unpack_from(first))
    joined = b"".join(trim(buffers, HEADER_SIZE))
    if len(joined) < HEADER_SIZE:
        raise BadRing("a chain is shorter than a packet header")
    return Header._make(HEADER.unpack(joined))


def write_header(buffers: list[memoryview], header: bytes) -> None:
    """Put a packed header at the front of a chain. Raises `BadRing` for a short chain."""
    for buffer in buffers:
        piece = header[: len(buffer)]
        buffer[: len(piece)] = piece
        header = header[len(piece) :]
        if not header:
            return
    raise BadRing("a chain is shorter than a packet header")


def payload(buffers: list[memoryview]) -> list[memoryview]:
    """What lies behind the header; empty if there is no room."""
    skip, views = HEADER_SIZE, list[memoryview]()
    for buffer in buffers:
        if len(buffer) > skip:
            views.append(buffer[skip:] if skip else buffer)
            skip = 0
        else:
            skip -= len(buffer)
    return views


def trim(buffers: Iterable[memoryview], size: int) -> list[memoryview]:
    """The first `size` bytes of some buffers, or all if they hold less."""
    views = []
    for buffer in buffers:
        if size <= 0:
            break
        views.append(buffer[:size] if len(buffer) > size else buffer)
        size -= len(buffer)
    return views
