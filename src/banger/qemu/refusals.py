"""The parts of the Firecracker API that this engine refuses, and why."""

_SNAPSHOTS = "it cannot save or load snapshots"
_PMEM = "its machines have no persistent memory; use a drive"
_HINTING = "QEMU takes hints about free pages only while it migrates; free_page_reporting of /balloon works"
_MMDS = (
    "QEMU's network cards have no place where the guest's requests to 169.254.169.254 could be answered; "
    "give the guest its data on a drive or through vsock"
)
_HOTPLUG = "all of the guest's memory is there from the start; use /balloon to take and give back"

REFUSALS: dict[tuple[str, str], str] = {
    ("PUT", "/cpu-config"): "its modifiers are settings of KVM's",
    ("PUT", "/pmem/{id}"): _PMEM,
    ("PATCH", "/pmem/{id}"): _PMEM,
    ("PUT", "/mmds"): _MMDS,
    ("PATCH", "/mmds"): _MMDS,
    ("GET", "/mmds"): _MMDS,
    ("PUT", "/mmds/config"): _MMDS,
    ("PUT", "/hotplug/memory"): _HOTPLUG,
    ("PATCH", "/hotplug/memory"): _HOTPLUG,
    ("GET", "/hotplug/memory"): _HOTPLUG,
    ("PUT", "/snapshot/create"): _SNAPSHOTS,
    ("PUT", "/snapshot/load"): _SNAPSHOTS,
    ("PATCH", "/balloon/hinting/start"): _HINTING,
    ("PATCH", "/balloon/hinting/stop"): _HINTING,
    ("GET", "/balloon/hinting/status"): _HINTING,
}
