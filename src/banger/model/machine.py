"""What an engine is asked to run, whichever engine it is."""

import msgspec

GUEST_CID = 3


class Disk(msgspec.Struct, frozen=True, kw_only=True):
    """A block device; the one with `root` becomes /dev/vda, the others follow in their order."""

    id: str
    path: str
    root: bool = False
    read_only: bool = False


class Nic(msgspec.Struct, frozen=True, kw_only=True):
    """A network card: the host device of the Firecracker API, and what the guest is told by `banger.*` parameters."""

    id: str
    host_device: str
    mac: str
    address: str
    prefix: int
    gateway: str
    dns: tuple[str, ...]


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """A whole VM. Paths are as the engine finds them; memory in MiB; `backing_files` are behind the qcow2 disks."""

    id: str
    hostname: str
    vcpu: int
    memory_mib: int
    kernel: str
    initramfs: str
    boot_args: str
    disks: tuple[Disk, ...]
    nics: tuple[Nic, ...]
    vsock_socket: str
    backing_files: tuple[str, ...] = ()
