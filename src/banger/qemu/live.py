"""What the API changes while the guest runs: drives, balloon, and what QEMU has measured."""

import contextlib
import logging
from typing import Any

import msgspec

from banger.model.errors import BangerError, Invalid
from banger.model.firecracker import Balloon, BalloonStats, Drive, RateLimiter
from banger.qemu.argv import BALLOON, drive_device
from banger.qemu.disks import Layer, block_node, close_layers, io_limits
from banger.qemu.qmp import Qmp

log = logging.getLogger("banger-vmm")
MIB = 1 << 20
PAGES_PER_MIB = 256
_DEVICES = "/machine/peripheral"
_UNTOLD = 2**64 - 1
_GUEST_STATS = {
    "stat-swap-in": "swap_in",
    "stat-swap-out": "swap_out",
    "stat-major-faults": "major_faults",
    "stat-minor-faults": "minor_faults",
    "stat-free-memory": "free_memory",
    "stat-total-memory": "total_memory",
    "stat-available-memory": "available_memory",
    "stat-disk-caches": "disk_caches",
    "stat-htlb-pgalloc": "hugetlb_allocations",
    "stat-htlb-pgfail": "hugetlb_failures",
}


def _backend(drive_id: str) -> str:
    return f"{_DEVICES}/{drive_device(drive_id)}/virtio-backend"


def _named(error: BangerError, layers: list[Layer], fdsets: list[int]) -> BangerError:
    """The error with the names that the person gave for the descriptors that QEMU got."""
    message = error.message
    for layer, fdset in zip(layers, fdsets, strict=False):
        message = message.replace(f"/dev/fdset/{fdset}", layer.path)
    return type(error)(message, hint=error.hint)


class Live:
    """A running machine's devices, through its monitor."""

    def __init__(self, qmp: Qmp) -> None:
        self._qmp = qmp
        self._made = 0
        self._nodes: dict[str, str] = {}
        self._layers: dict[str, list[Layer]] = {}
        self._fdsets: dict[str, list[int]] = {}
        qmp.drive_of = self._drive_of

    def _drive_of(self, node: str) -> str:
        return next((drive for drive, its_node in self._nodes.items() if its_node == node), node)

    async def begin(self, drives: list[Drive], layers: dict[str, list[Layer]], balloon: Balloon | None) -> None:
        """Before the guest's first instruction: what the command line cannot say.

        The command line has made the nodes disk0, disk1 and so on, in the order of `drives`, and sets of descriptors
        with the numbers of the layers' own. Owns `layers`.
        """
        self._made = len(drives)
        self._layers |= layers
        for number, drive in enumerate(drives):
            self._nodes[drive.drive_id] = f"disk{number}"
            self._fdsets[drive.drive_id] = [layer.fd for layer in layers[drive.drive_id]]
            if drive.rate_limiter is not None:
                await self.limit(drive.drive_id, drive.rate_limiter)
        if balloon is not None and balloon.stats_polling_interval_s:
            await self.poll_balloon(balloon.stats_polling_interval_s)

    async def limit(self, drive_id: str, limiter: RateLimiter | None) -> None:
        """Set a drive's limits."""
        buckets = (limiter.bandwidth, limiter.ops) if limiter else ()
        if any(bucket is not None and bucket.one_time_burst for bucket in buckets):
            log.warning("drive %s: one_time_burst is not granted: QEMU has no such burst", drive_id)
        await self._qmp.throttle(_backend(drive_id), io_limits(limiter))

    async def reopen(self, drive: Drive, layers: list[Layer]) -> None:
        """Put other files behind a drive, or look at the same one anew; the guest is told the size. Owns `layers`."""
        if layers[0].driver == "raw" and layers[0].same_file(self._layers[drive.drive_id][0]):
            try:
                await self._resize(drive, self._nodes[drive.drive_id], layers[0].size())
            finally:
                close_layers(layers)
        else:
            await self._replace(drive, layers)

    async def _replace(self, drive: Drive, layers: list[Layer]) -> None:
        self._made += 1
        name, before = f"disk{self._made}", self._nodes[drive.drive_id]
        fdsets: list[int] = []
        try:
            for layer in layers:
                fdsets.append(await self._qmp.add_fd(layer.fd))
            await self._qmp.execute("blockdev-add", **block_node(name, drive, layers, fdsets))
            await self._swap(drive, name, before)
        except BangerError as error:
            await self._forget(name, fdsets)
            close_layers(layers)
            raise _named(error, layers, fdsets) from error
        await self._forget(before, self._fdsets[drive.drive_id])
        close_layers(self._layers[drive.drive_id])
        self._nodes[drive.drive_id] = name
        self._layers[drive.drive_id] = layers
        self._fdsets[drive.drive_id] = fdsets

    async def _swap(self, drive: Drive, node: str, before: str) -> None:
        sizes = await self._sizes()
        if drive.is_read_only and sizes[node] != sizes[before]:
            raise Invalid("QEMU cannot tell the guest that a read-only drive has another size: give it one as large")
        await self._put(drive.drive_id, node)
        if not drive.is_read_only:
            try:
                await self._resize(drive, node, sizes[node])
            except BangerError:
                await self._put(drive.drive_id, before)
                raise

    async def _put(self, drive_id: str, node: str) -> None:
        path = f"{_DEVICES}/{drive_device(drive_id)}"
        await self._qmp.execute("qom-set", path=path, property="drive", value=node)

    async def _resize(self, drive: Drive, node: str, size: int) -> None:
        """To the size it has: that is what tells the guest."""
        if drive.is_read_only:
            raise Invalid("QEMU cannot tell the guest that a read-only drive has another size")
        await self._qmp.execute("block_resize", node_name=node, size=size)

    async def _sizes(self) -> dict[str, int]:
        nodes = await self._qmp.execute("query-named-block-nodes", flat=True)
        return {node["node-name"]: int(node["image"]["virtual-size"]) for node in nodes}

    async def _forget(self, node: str, fdsets: list[int]) -> None:
        """Close a node that no device uses any more; one that was never made is no error here."""
        with contextlib.suppress(BangerError):
            await self._qmp.execute("blockdev-del", node_name=node)
        for fdset in fdsets:
            with contextlib.suppress(BangerError):
                await self._qmp.execute("remove-fd", fdset_id=fdset)

    def close(self) -> None:
        """Close our own descriptors of the drives."""
        for layers in self._layers.values():
            close_layers(layers)
        self._layers.clear()

    async def inflate(self, memory_mib: int, amount_mib: int) -> None:
        """Aim at a balloon of this size; the guest follows as it can."""
        await self._qmp.execute("balloon", value=(memory_mib - amount_mib) * MIB)

    async def poll_balloon(self, seconds: int) -> None:
        """Set how often the guest is asked for its statistics; 0 stops it."""
        path = f"{_DEVICES}/{BALLOON}"
        await self._qmp.execute("qom-set", path=path, property="guest-stats-polling-interval", value=seconds)

    async def balloon_stats(self, memory_mib: int, amount_mib: int) -> BalloonStats:
        """What the guest told last. Raises `Invalid` when there is no balloon in use."""
        actual = memory_mib - (await self._qmp.execute("query-balloon"))["actual"] // MIB
        path = f"{_DEVICES}/{BALLOON}"
        told = await self._qmp.execute("qom-get", path=path, property="guest-stats")
        known = {name: told["stats"].get(theirs, _UNTOLD) for theirs, name in _GUEST_STATS.items()}
        return BalloonStats(
            target_pages=amount_mib * PAGES_PER_MIB,
            actual_pages=actual * PAGES_PER_MIB,
            target_mib=amount_mib,
            actual_mib=actual,
            **{name: value for name, value in known.items() if 0 <= value < _UNTOLD},
        )

    async def block_metrics(self) -> dict[str, dict[str, int]]:
        """Firecracker's `block` and `block_<id>` groups."""
        groups: dict[str, dict[str, int]] = {"block": dict.fromkeys(_BLOCK.values(), 0)}
        by_device = {_backend(drive): drive for drive in self._nodes}
        for device in await self._qmp.execute("query-blockstats"):
            drive_id = by_device.get(device.get("qdev", ""))
            if drive_id is not None:
                group = {name: int(device["stats"][theirs]) for theirs, name in _BLOCK.items()}
                groups[f"block_{drive_id}"] = group
                groups["block"] = {name: groups["block"][name] + value for name, value in group.items()}
        return groups


_BLOCK = {
    "rd_bytes": "read_bytes",
    "wr_bytes": "write_bytes",
    "rd_operations": "read_count",
    "wr_operations": "write_count",
    "flush_operations": "flush_count",
}


def updated(balloon: Balloon, **changes: Any) -> Balloon:
    """The balloon's document after a PATCH. Raises `Invalid` when statistics would be turned on or off."""
    seconds = changes.get("stats_polling_interval_s")
    if seconds is not None and bool(seconds) != bool(balloon.stats_polling_interval_s):
        raise Invalid("Balloon statistics cannot be turned on or off after the start, only their interval changed")
    return msgspec.structs.replace(balloon, **changes)
