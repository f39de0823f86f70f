"""QEMU's command line, for every shape of machine that the API can describe."""

import json
from typing import Any

import pytest

from banger.model.firecracker import (
    Balloon,
    BootSource,
    Drive,
    EntropyDevice,
    MachineConfiguration,
    NetworkInterface,
    RateLimiter,
    TokenBucket,
)
from banger.qemu.argv import HostFacts, Wiring, qemu_argv
from banger.qemu.disks import Layer, io_limits
from banger.qemu.handles import Handles
from banger.qemu.machine import Configuration

WIRING = Wiring(qmp=5, serial=6, vsock=7)
TCG = HostFacts("tcg", 2_400_000, pvh_kernel=True)


class Machine(Configuration):
    """A configuration, and handles as if its files had been opened."""

    def __init__(self, **boot: str) -> None:
        super().__init__()
        self.boot = BootSource(kernel_image_path="/k", **({"boot_args": "quiet"} | boot))
        self.machine = MachineConfiguration(vcpu_count=3, mem_size_mib=640)
        self.handles = Handles("/k")
        self.handles.kernel = 20

    def drive(self, drive_id: str, *layers: Layer, **more: Any) -> None:
        path = layers[0].path
        self.drives[drive_id] = Drive(
            drive_id=drive_id,
            path_on_host=path,
            cache_type="Writeback",
            **({"is_root_device": False} | more),
        )
        self.handles.drives[drive_id] = list(layers)

    def nic(self, name: str, **more: Any) -> None:
        self.nics["eth0"] = NetworkInterface(iface_id="eth0", host_dev_name=name, **more)
        self.handles.taps["eth0"] = 33


RAW = Layer(30, "raw", "/d.raw", read_only=False)
OVERLAY = (Layer(31, "qcow2", "/r.qcow2", read_only=False), Layer(32, "raw", "/base.ext4", read_only=True))


def argv(config: Machine, wiring: Wiring = WIRING, host: HostFacts = TCG) -> list[str]:
    return qemu_argv("/usr/bin/qemu", "abc", config, config.handles, wiring, host)


def nodes(config: Machine) -> list[dict[str, Any]]:
    return [json.loads(node) for node in values(argv(config), "-blockdev")]


def values(words: list[str], flag: str) -> list[str]:
    return [words[i + 1] for i, word in enumerate(words) if word == flag]


def test_size_memory_and_hardening() -> None:
    words = argv(Machine())
    assert values(words, "-smp") == ["3"]
    assert values(words, "-m") == ["640M"]
    assert "memory-backend-memfd,id=mem,size=640M,share=on" in values(words, "-object")
    assert {"-nodefaults", "-no-user-config", "-no-reboot"} <= set(words)
    assert values(words, "-sandbox")[0].startswith("on,")
    assert "-monitor" not in words


@pytest.mark.parametrize(("accelerator", "cpu"), [("tcg", "max"), ("kvm", "host")])
def test_the_accelerator_gets_the_cpu_it_was_proven_with(accelerator: str, cpu: str) -> None:
    words = argv(Machine(), host=HostFacts(accelerator, 1, pvh_kernel=False))
    assert values(words, "-accel")[0].split(",")[0] == accelerator
    assert values(words, "-cpu") == [cpu]


def test_an_emulated_guest_is_told_the_rate_of_its_clock_once() -> None:
    assert values(argv(Machine()), "-append") == ["quiet tsc_early_khz=2400000"]
    assert values(argv(Machine(boot_args="tsc_early_khz=7")), "-append") == ["tsc_early_khz=7"]
    assert values(argv(Machine(), host=HostFacts("kvm", 5, pvh_kernel=True)), "-append") == ["quiet"]
    assert values(argv(Machine(), host=HostFacts("tcg", 0, pvh_kernel=True)), "-append") == ["quiet"]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({}, "quiet root=/dev/vda rw"),
        ({"is_read_only": True}, "quiet root=/dev/vda ro"),
        ({"partuuid": "0eaa91a0-01"}, "quiet root=PARTUUID=0eaa91a0-01 rw"),
    ],
)
def test_the_kernel_is_told_its_root_as_firecracker_tells_it(more: dict[str, Any], said: str) -> None:
    config = Machine()
    config.drive("data", RAW)
    config.drive("root", *OVERLAY, is_root_device=True, **more)
    assert values(argv(config, host=HostFacts("kvm", 5, pvh_kernel=True)), "-append") == [said]


def test_an_uncompressed_kernel_is_entered_without_a_bios() -> None:
    assert values(argv(Machine()), "-bios") == ["qboot.rom"]
    assert values(argv(Machine(), host=HostFacts("tcg", 1, pvh_kernel=False)), "-bios") == []


def test_the_root_comes_first_and_is_what_the_guest_calls_vda() -> None:
    config = Machine()
    config.drive("data", RAW)
    config.drive("root", *OVERLAY, is_root_device=True)
    devices = [value for value in values(argv(config), "-device") if value.startswith("virtio-blk")]
    assert [device.split("serial=")[1].split(",")[0] for device in devices] == ["root", "data"]
    for device in devices:
        assert {"discard=on", "write-zeroes=on", "werror=enospc", "rerror=report"} <= set(device.split(","))


def test_qemu_opens_nothing_of_ours_by_name() -> None:
    config = Machine()
    config.drive("root", *OVERLAY, is_root_device=True)
    config.drive("plain", RAW)
    config.nic("tap7")
    words = argv(config)
    assert not any(path in word for word in words for path in ("/r.qcow2", "/base.ext4", "/d.raw", "/k", "tap7"))
    assert values(words, "-add-fd") == ["fd=31,set=31", "fd=32,set=32", "fd=30,set=30"]
    assert values(words, "-kernel") == ["/proc/self/fd/20"]
    overlay, plain = nodes(config)
    assert (overlay["driver"], overlay["file"]["filename"], overlay["read-only"]) == ("qcow2", "/dev/fdset/31", False)
    backing = overlay["backing"]
    assert (backing["driver"], backing["file"]["filename"], backing["read-only"]) == ("raw", "/dev/fdset/32", True)
    assert (plain["driver"], plain["file"]["filename"], plain["cache"]) == ("raw", "/dev/fdset/30", {"no-flush": False})


def test_any_id_that_the_api_takes_can_be_a_device() -> None:
    """QEMU's names of block nodes end at 31 characters, those of the API at 64; a card may be called like a drive."""
    config = Machine()
    long = "x" * 64
    config.drive(long, RAW)
    config.nics[long] = NetworkInterface(iface_id=long, host_dev_name="user:closed")
    assert all(len(node["node-name"]) <= 31 for node in nodes(config))
    ids = [word.split("id=")[1].split(",")[0] for word in values(argv(config), "-device") if ",id=" in word]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("user:closed", "user,id=net-eth0-host,ipv6=off,net=10.0.2.0/24,restrict=on"),
        ("user:nat", "user,id=net-eth0-host,ipv6=off,net=10.0.2.0/24,restrict=off"),
        ("tap7", "tap,id=net-eth0-host,fd=33"),
    ],
)
def test_networks(name: str, expected: str) -> None:
    config = Machine()
    config.nic(name, guest_mac="02:00:00:00:00:01", mtu=1400)
    words = argv(config)
    assert values(words, "-netdev") == [expected]
    device = "virtio-net-pci,netdev=net-eth0-host,id=net-eth0,romfile=,mac=02:00:00:00:00:01,host_mtu=1400"
    assert device in values(words, "-device")


def test_without_being_asked_for_there_is_no_such_device() -> None:
    config = Machine()
    words = " ".join(argv(config, Wiring(5, 6)))
    assert not any(name in words for name in ("vsock", "virtio-rng", "balloon", "debugcon"))
    config.entropy = EntropyDevice(rate_limiter=RateLimiter(bandwidth=TokenBucket(size=1024, refill_time=100)))
    config.balloon = Balloon(amount_mib=64, deflate_on_oom=True, free_page_reporting=True)
    devices = values(argv(config, WIRING._replace(boot_timer=9)), "-device")
    assert "virtio-rng-pci,rng=rng,max-bytes=1024,period=100" in devices
    assert "virtio-balloon-pci,id=balloon,deflate-on-oom=on,free-page-reporting=on" in devices
    assert any(device.startswith("vhost-user-vsock-pci") for device in devices)
    assert "isa-debugcon,iobase=0x3f0,chardev=timer" in devices


def test_threads_and_huge_pages() -> None:
    config = Machine()
    config.machine = MachineConfiguration(vcpu_count=4, mem_size_mib=640, smt=True, huge_pages="2M")
    words = argv(config)
    assert values(words, "-smp") == ["4,sockets=1,cores=2,threads=2"]
    assert values(words, "-object") == ["memory-backend-memfd,id=mem,size=640M,share=on,hugetlb=on,hugetlbsize=2M"]


@pytest.mark.parametrize(
    ("size", "refill", "expected"),
    [
        (1000, 1000, {"bps": 1000, "bps_max": 1000}),
        (5000, 2000, {"bps": 2500, "bps_max": 5000}),
        (100, 100, {"bps": 1000}),
        (0, 100, {}),
        (100, 0, {}),
    ],
)
def test_a_token_bucket_as_qemu_understands_it(size: int, refill: int, expected: dict[str, int]) -> None:
    limits = io_limits(RateLimiter(bandwidth=TokenBucket(size=size, refill_time=refill)))
    assert {name: value for name, value in limits.items() if value} == expected
    assert set(limits) >= {"bps", "bps_rd", "bps_wr", "iops", "iops_rd", "iops_wr"}
