"""QEMU's command line, for every shape of machine that the API can describe."""

import pytest

from banger.model.errors import Invalid
from banger.model.firecracker import BootSource, Drive, MachineConfiguration, NetworkInterface
from banger.qemu.argv import HostFacts, Wiring, qemu_argv
from banger.qemu.machine import Configuration

WIRING = Wiring(qmp=5, serial=6, vsock=7)
TCG = HostFacts("tcg", 2_400_000, pvh_kernel=True)


def configuration(**boot: str) -> Configuration:
    config = Configuration()
    config.boot = BootSource(kernel_image_path="/k", **({"boot_args": "root=/dev/vda"} | boot))
    config.machine = MachineConfiguration(vcpu_count=3, mem_size_mib=640)
    return config


def add_drive(config: Configuration, drive_id: str, path: str, *, root: bool = False, read_only: bool = False) -> None:
    config.drives[drive_id] = Drive(
        drive_id=drive_id, is_root_device=root, path_on_host=path, is_read_only=read_only, cache_type="Writeback"
    )


def argv(config: Configuration, wiring: Wiring = WIRING, host: HostFacts = TCG) -> list[str]:
    return qemu_argv("/usr/bin/qemu", "abc", config, wiring, host)


def values(words: list[str], flag: str) -> list[str]:
    return [words[i + 1] for i, word in enumerate(words) if word == flag]


def test_size_memory_and_hardening() -> None:
    words = argv(configuration())
    assert values(words, "-smp") == ["3"]
    assert values(words, "-m") == ["640M"]
    assert "memory-backend-memfd,id=mem,size=640M,share=on" in values(words, "-object")
    assert {"-nodefaults", "-no-user-config", "-no-reboot"} <= set(words)
    assert values(words, "-sandbox")[0].startswith("on,")
    assert "-monitor" not in words


@pytest.mark.parametrize(("accelerator", "cpu"), [("tcg", "max"), ("kvm", "host")])
def test_the_accelerator_gets_the_cpu_it_was_proven_with(accelerator: str, cpu: str) -> None:
    words = argv(configuration(), host=HostFacts(accelerator, 1, pvh_kernel=False))
    assert values(words, "-accel")[0].split(",")[0] == accelerator
    assert values(words, "-cpu") == [cpu]


def test_an_emulated_guest_is_told_the_rate_of_its_clock_once() -> None:
    assert values(argv(configuration()), "-append") == ["root=/dev/vda tsc_early_khz=2400000"]
    given = configuration(boot_args="tsc_early_khz=7")
    assert values(argv(given), "-append") == ["tsc_early_khz=7"]
    assert values(argv(configuration(), host=HostFacts("kvm", 5, pvh_kernel=True)), "-append") == ["root=/dev/vda"]
    assert values(argv(configuration(), host=HostFacts("tcg", 0, pvh_kernel=True)), "-append") == ["root=/dev/vda"]


def test_an_uncompressed_kernel_is_entered_without_a_bios() -> None:
    assert values(argv(configuration()), "-bios") == ["qboot.rom"]
    assert values(argv(configuration(), host=HostFacts("tcg", 1, pvh_kernel=False)), "-bios") == []


def test_the_root_comes_first_and_is_what_the_guest_calls_vda() -> None:
    config = configuration()
    add_drive(config, "data", "/d.raw")
    add_drive(config, "root", "/r.qcow2", root=True)
    devices = [value for value in values(argv(config), "-device") if value.startswith("virtio-blk")]
    assert [device.split("drive=")[1].split(",")[0] for device in devices] == ["root", "data"]


def test_a_format_follows_from_the_name_alone() -> None:
    config = configuration()
    add_drive(config, "root", "/r.qcow2", root=True)
    add_drive(config, "plain", "/disk.img", read_only=True)
    nodes = values(argv(config), "-blockdev")
    assert [node.split(",")[0] for node in nodes] == ["driver=file", "driver=qcow2", "driver=file", "driver=raw"]
    assert all("read-only=on" in node for node in nodes[2:])
    assert all("cache.no-flush=off" in node for node in nodes)


def test_commas_in_paths_cannot_add_options() -> None:
    config = configuration()
    add_drive(config, "root", "/a,read-only=off,b", root=True)
    assert "filename=/a,,read-only=off,,b," in values(argv(config), "-blockdev")[0]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("user:closed", "user,id=eth0,ipv6=off,net=10.0.2.0/24,restrict=on"),
        ("user:nat", "user,id=eth0,ipv6=off,net=10.0.2.0/24,restrict=off"),
        ("tap7", "tap,id=eth0,ifname=tap7,script=no,downscript=no"),
        ("a,script=/x", "tap,id=eth0,ifname=a,,script=/x,script=no,downscript=no"),
    ],
)
def test_networks(name: str, expected: str) -> None:
    config = configuration()
    config.nics["eth0"] = NetworkInterface(iface_id="eth0", host_dev_name=name, guest_mac="02:00:00:00:00:01")
    words = argv(config)
    assert values(words, "-netdev") == [expected]
    assert "virtio-net-pci,netdev=eth0,romfile=,mac=02:00:00:00:00:01" in values(words, "-device")


def test_without_vsock_there_is_no_such_device() -> None:
    assert not any("vsock" in word for word in argv(configuration(), Wiring(5, 6, -1)))
    assert any("vhost-user-vsock-pci" in word for word in argv(configuration()))


def test_a_kernel_is_needed() -> None:
    with pytest.raises(Invalid, match="boot-source"):
        argv(Configuration())
