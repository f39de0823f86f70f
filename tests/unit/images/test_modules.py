import gzip
import lzma
from pathlib import Path

import pytest
import zstandard

from banger.images.modules import module_name, read_module, resolve
from banger.model.errors import Invalid

DEP = """\
kernel/net/failover.ko.xz:
kernel/drivers/net/net_failover.ko.xz: kernel/net/failover.ko.xz
kernel/drivers/net/virtio_net.ko.xz: kernel/drivers/net/net_failover.ko.xz kernel/net/failover.ko.xz
kernel/drivers/block/virtio_blk.ko.xz:
kernel/net/a-dash.ko.xz: kernel/net/failover.ko.xz
"""


@pytest.fixture
def modules(tmp_path: Path) -> Path:
    (tmp_path / "modules.dep").write_text(DEP)
    (tmp_path / "modules.builtin").write_text("kernel/fs/ext4/ext4.ko\nkernel/drivers/virtio/virtio_pci.ko\n")
    return tmp_path


def test_dependencies_come_first_and_once(modules: Path) -> None:
    resolved = resolve(modules, ["virtio_pci", "virtio_blk", "virtio_net", "a_dash", "ext4"])
    assert resolved.names == ("virtio_blk", "failover", "net_failover", "virtio_net", "a_dash")
    assert resolved.missing == ()


def test_what_exists_nowhere_is_told(modules: Path) -> None:
    assert resolve(modules, ["virtio_blk", "vsock"]).missing == ("vsock",)


@pytest.mark.parametrize("evil", ["../../etc/evil.ko", "/etc/evil.ko"])
def test_files_outside_the_directory_are_refused(modules: Path, evil: str) -> None:
    (modules / "modules.dep").write_text(f"{evil}:\n")
    with pytest.raises(Invalid, match="outside"):
        resolve(modules, ["evil"])


def test_names_ignore_directories_dashes_and_compression() -> None:
    assert module_name("kernel/net/foo-bar.ko.zst") == "foo_bar"


CONTENT = b"\x7fELF" + bytes(1000)


@pytest.mark.parametrize(
    ("suffix", "packed"),
    [
        (".ko", CONTENT),
        (".ko.xz", lzma.compress(CONTENT)),
        (".ko.gz", gzip.compress(CONTENT)),
        (".ko.zst", zstandard.compress(CONTENT)),
    ],
)
def test_modules_are_read_plain_and_damage_is_refused(tmp_path: Path, suffix: str, packed: bytes) -> None:
    file = tmp_path / f"module{suffix}"
    file.write_bytes(packed)
    assert read_module(file) == CONTENT
    file.write_bytes(b"\0\0" + packed[2:])
    with pytest.raises(Invalid):
        read_module(file)
