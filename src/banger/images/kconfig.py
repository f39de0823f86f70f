"""A kernel's configuration file, and the gate that says whether such a kernel can boot a machine of ours."""

import re
from collections.abc import Collection
from dataclasses import dataclass

_LINE = re.compile(r"^CONFIG_(\w+)=([ym])$", re.MULTILINE)
# What a root disk needs: any one of each row's options, with the module that brings it.
_NEEDED = (
    ("a virtio transport (virtio_pci or virtio_mmio)", {"VIRTIO_PCI": "virtio_pci", "VIRTIO_MMIO": "virtio_mmio"}),
    ("virtio_blk", {"VIRTIO_BLK": "virtio_blk"}),
    ("ext4", {"EXT4_FS": "ext4"}),
)  # fmt: skip
_NEEDED_BUILTIN = ("BLK_DEV_INITRD", "DEVTMPFS", "SERIAL_8250_CONSOLE")


@dataclass(frozen=True)
class KernelConfig:
    """The options that are `y` (built in) or `m` (a module), without their `CONFIG_` prefix."""

    options: dict[str, str]

    @classmethod
    def parse(cls, text: str) -> "KernelConfig":
        return cls(dict(_LINE.findall(text)))

    def builtin(self, option: str) -> bool:
        return self.options.get(option) == "y"

    @property
    def needs_acpi(self) -> bool:
        """Whether virtio devices cannot be named on the command line, so that ACPI or PCI must announce them."""
        return not self.builtin("VIRTIO_MMIO_CMDLINE_DEVICES")


def missing_drivers(config: KernelConfig, initramfs_modules: Collection[str]) -> list[str]:
    """What the kernel lacks to reach its root disk: neither built in nor a module of the initramfs. Empty is good."""
    lacking = [
        what
        for what, choices in _NEEDED
        if not any(config.builtin(option) or module in initramfs_modules for option, module in choices.items())
    ]
    return lacking + [f"CONFIG_{option}=y" for option in _NEEDED_BUILTIN if not config.builtin(option)]
