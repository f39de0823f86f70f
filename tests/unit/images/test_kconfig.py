from banger.images.kconfig import KernelConfig, missing_drivers

BASE = "CONFIG_BLK_DEV_INITRD=y\nCONFIG_DEVTMPFS=y\nCONFIG_SERIAL_8250_CONSOLE=y\n"


def test_builtin_drivers_and_modules_in_the_initramfs_both_pass() -> None:
    config = KernelConfig.parse(BASE + "CONFIG_VIRTIO_PCI=y\nCONFIG_VIRTIO_BLK=m\nCONFIG_EXT4_FS=y\n")
    assert missing_drivers(config, {"virtio_blk"}) == []


def test_a_module_outside_the_initramfs_is_missing() -> None:
    config = KernelConfig.parse(BASE + "CONFIG_VIRTIO_MMIO=m\nCONFIG_VIRTIO_BLK=m\nCONFIG_EXT4_FS=m\n")
    assert missing_drivers(config, {"virtio_mmio"}) == ["virtio_blk", "ext4"]


def test_everything_lacking_is_named() -> None:
    lacking = missing_drivers(KernelConfig.parse("# CONFIG_DEVTMPFS is not set\nCONFIG_EXT4_FS=y\n"), ())
    assert lacking == [
        "a virtio transport (virtio_pci or virtio_mmio)",
        "virtio_blk",
        "CONFIG_BLK_DEV_INITRD=y",
        "CONFIG_DEVTMPFS=y",
        "CONFIG_SERIAL_8250_CONSOLE=y",
    ]


def test_acpi_is_needed_unless_devices_can_be_on_the_command_line() -> None:
    assert KernelConfig.parse("# CONFIG_VIRTIO_MMIO_CMDLINE_DEVICES is not set").needs_acpi
    assert not KernelConfig.parse("CONFIG_VIRTIO_MMIO_CMDLINE_DEVICES=y").needs_acpi
