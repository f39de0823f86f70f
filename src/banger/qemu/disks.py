"""Drives: opening their files, and what QEMU is told of them.

A format is never probed: a path that ends in `.qcow2` is qcow2, any other is raw. The host chooses the name, so a
guest that writes a qcow2 header into its raw disk gains nothing. A qcow2's backing file is opened only if it was
named when banger-vmm was started: whoever could write the overlay cannot make us open another file of the host.
"""

import os
import stat
import struct
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

from banger.model.errors import Invalid
from banger.model.firecracker import Drive, RateLimiter, TokenBucket

CHAIN_MAX = 8
_MAGIC = b"QFI\xfb"
_BACKING_FORMAT = 0xE2792ACA
_HEAD = 64 * 1024  # the header and its extensions lie in the first cluster


class Layer(NamedTuple):
    """One file of a drive: an open descriptor, its format, where it was found, QEMU's driver for such files."""

    fd: int
    driver: str
    path: str
    read_only: bool
    protocol: str = "file"

    def size(self) -> int:
        """In bytes, of the file itself."""
        return os.lseek(self.fd, 0, os.SEEK_END)

    def same_file(self, other: "Layer") -> bool:
        return os.path.sameopenfile(self.fd, other.fd)


def open_layers(path: str, *, read_only: bool, backing_files: Collection[str]) -> list[Layer]:
    """The drive's file and its chain of backing files, topmost first; the caller closes them. Raises `Invalid`."""
    layers: list[Layer] = []
    driver: str | None = "qcow2" if path.endswith(".qcow2") else "raw"
    try:
        while driver is not None:
            if len(layers) == CHAIN_MAX:
                raise Invalid(f"{layers[0].path} has more than {CHAIN_MAX - 1} backing files")
            layers.append(_open(path, driver, read_only=read_only or bool(layers)))
            driver, path = _backing(layers[-1]) if driver == "qcow2" else (None, "")
            if driver is not None and path not in backing_files:
                raise Invalid(
                    f"{layers[-1].path} names the backing file {path}, which was not given: --backing-file {path}"
                )
    except BaseException:
        close_layers(layers)
        raise
    return layers


def close_layers(layers: Collection[Layer]) -> None:
    for layer in layers:
        os.close(layer.fd)


def _open(path: str, driver: str, *, read_only: bool) -> Layer:
    try:
        # O_NONBLOCK: a named pipe must not keep us waiting
        fd = os.open(path, (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise Invalid(f"Unable to open the drive's file {path!r}: {error.strerror}") from error
    mode = os.fstat(fd).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
        os.close(fd)
        raise Invalid(f"The drive's file {path!r} is neither a regular file nor a block device")
    return Layer(fd, driver, path, read_only, "host_device" if stat.S_ISBLK(mode) else "file")


def _backing(layer: Layer) -> tuple[str | None, str]:
    """Format and absolute path of a qcow2's backing file; (None, "") without one (QEMU, docs/interop/qcow2.txt)."""
    head = os.pread(layer.fd, _HEAD, 0)
    if len(head) < 104 or not head.startswith(_MAGIC):
        raise Invalid(f"{layer.path} is named .qcow2 but is no qcow2 image")
    version, offset, size = struct.unpack_from(">IQI", head, 4)
    if offset == 0:
        return None, ""
    name = os.fsdecode(head[offset : offset + size])
    if size == 0 or len(os.fsencode(name)) != size or not name.isprintable():
        raise Invalid(f"{layer.path} has a damaged header")
    kind = _extension(head, 72 if version == 2 else struct.unpack_from(">I", head, 100)[0], _BACKING_FORMAT)
    if kind not in (b"raw", b"qcow2"):
        raise Invalid(f"{layer.path} does not say that its backing file is raw or qcow2, and formats are never guessed")
    return kind.decode(), str(Path(layer.path).parent.absolute() / name)


def _extension(head: bytes, offset: int, wanted: int) -> bytes:
    while offset + 8 <= len(head):
        kind, length = struct.unpack_from(">II", head, offset)
        if kind == wanted:
            return head[offset + 8 : offset + 8 + length]
        if kind == 0:
            break
        offset += 8 + (length + 7) // 8 * 8
    return b""


def block_node(name: str, drive: Drive, layers: list[Layer], fdsets: list[int]) -> dict[str, Any]:
    """The drive as QEMU's `blockdev-add` takes it; `fdsets[i]` holds the descriptor of `layers[i]`. Pure."""
    node: dict[str, Any] | None = None
    for layer, fdset in reversed(list(zip(layers, fdsets, strict=True))):
        # `Unsafe` promises nothing after a crash of the host: flushes are dropped, as in Firecracker
        cache = {"no-flush": drive.cache_type == "Unsafe"}
        file = {
            "driver": layer.protocol,
            "filename": f"/dev/fdset/{fdset}",
            "aio": "io_uring" if drive.io_engine == "Async" else "threads",
        }
        # What the guest discards becomes a hole. Zeros that it writes are written (no detect-zeroes): a guest may
        # write them to have the blocks, as databases do for their logs, and it can say that it wants none.
        common = {"read-only": layer.read_only, "discard": "unmap", "cache": cache}
        node = {"driver": layer.driver, "file": file | common, **common} | ({"backing": node} if node else {})
    assert node is not None
    return {"node-name": name, **node}


def io_limits(limiter: RateLimiter | None) -> dict[str, int]:
    """The arguments of QEMU's `block_set_io_throttle`; zeros lift every limit. Pure.

    QEMU's bucket refills all the time like Firecracker's; it holds `size` when that takes a second or longer, else
    what a tenth of a second refills. `one_time_burst` has no counterpart.
    """
    limits = dict.fromkeys(("bps", "bps_rd", "bps_wr", "iops", "iops_rd", "iops_wr"), 0)
    if limiter is not None:
        limits |= _bucket("bps", limiter.bandwidth) | _bucket("iops", limiter.ops)
    return limits


def _bucket(name: str, bucket: TokenBucket | None) -> dict[str, int]:
    if bucket is None or not bucket.size or not bucket.refill_time:
        return {}
    limits = {name: max(1, bucket.size * 1000 // bucket.refill_time)}
    if bucket.refill_time >= 1000:
        limits[f"{name}_max"] = max(limits[name], bucket.size)
    return limits
