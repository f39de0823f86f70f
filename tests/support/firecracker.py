"""Releases of a Firecracker that only tells its version: real ELF programs of 200 bytes, in real archives."""

import gzip
import hashlib
import io
import struct
import tarfile
from pathlib import Path

BASE = 0x400000
HEADERS = 64 + 56


def program(says: str, *, machine: int = 62, stays: bool = False) -> bytes:
    """A static x86-64 ELF that prints a line and ends, or that waits for a signal."""
    text = says.encode() + b"\n\n"
    end = b"\xb8" + struct.pack("<I", 34 if stays else 60) + b"\x31\xff\x0f\x05"  # pause(2), or exit(2) with 0
    write = b"\xb8\x01\0\0\0\xbf\x01\0\0\0\x48\x8d\x35%s\xba" + struct.pack("<I", len(text)) + b"\x0f\x05"
    size = len(write) + 2 + len(end)  # `%s` is two bytes and stands for four
    # lea rsi is 7 bytes long and begins at 10: what it adds counts from its end
    code = (write % struct.pack("<i", size - 17)) + end
    whole = HEADERS + len(code) + len(text)
    header = b"\x7fELF\x02\x01\x01" + bytes(9)
    header += struct.pack("<HHIQQQIHHHHHH", 2, machine, 1, BASE + HEADERS, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, BASE, BASE, whole, whole, 4096)
    return header + segment + code + text


def member(name: str, content: bytes, **changes: object) -> tuple[tarfile.TarInfo, bytes]:
    """A member of an archive; `changes` are attributes of its TarInfo."""
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(content), 0o755
    for key, value in changes.items():
        setattr(info, key, value)
    return info, content


def members(version: str, *, firecracker: bytes | None = None) -> list[tuple[tarfile.TarInfo, bytes]]:
    """What a release has, and more that is not wanted."""
    base = f"release-v{version}-x86_64"
    return [
        member(f"{base}/LICENSE", b"Apache-2.0\n"),
        member(f"{base}/firecracker-v{version}-x86_64.debug", bytes(5000)),
        member(f"{base}/firecracker-v{version}-x86_64", firecracker or program(f"Firecracker v{version}")),
        member(f"{base}/jailer-v{version}-x86_64", program(f"Jailer v{version}")),
    ]


def archive(parts: list[tuple[tarfile.TarInfo, bytes]]) -> bytes:
    """The members as a .tgz."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for info, content in parts:
            tar.addfile(info, io.BytesIO(content))
    return gzip.compress(out.getvalue(), 1, mtime=0)


def release(version: str) -> bytes:
    """A release's archive."""
    return archive(members(version))


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def put(directory: Path, version: str) -> Path:
    """A release's archive in a directory, under its own name."""
    path = directory / f"firecracker-v{version}-x86_64.tgz"
    path.write_bytes(release(version))
    return path
