"""Every name that banger gives to something on disk.

state    what must survive: database, images, each VM's disks and logs   $XDG_STATE_HOME/banger
runtime  sockets and locks, gone after a reboot                          $XDG_RUNTIME_DIR/banger
cache    what can be made again: verdicts, downloads                     $XDG_CACHE_HOME/banger

`BANGER_STATE_DIR`, `BANGER_RUNTIME_DIR` and `BANGER_CACHE_DIR` override each.
A Unix socket's path holds at most 107 bytes; names below the runtime directory stay within 40.
"""

import os
from pathlib import Path
from typing import NamedTuple

from banger.model.errors import Invalid

SOCKET_PATH_MAX = 107
ROOT_OVERLAY, ROOT_COPY, ROOT_CHANGES, WORK_DISK = "root.qcow2", "root.ext4", "root.cow", "work.ext4"
ROOTS = (ROOT_OVERLAY, ROOT_COPY, ROOT_CHANGES)
NEXT_ROOT = ".next-"
DISKS = (*ROOTS, WORK_DISK)  # what a VM's state directory may have of disks
JAILED = "firecracker"  # the name that an engine's executable must have for a jail to be made for it
_LONGEST_RUNTIME_NAME = len("/vms/0123456789ab/v.sock_4294967295")


def _home(variable: str, xdg: str, fallback: Path) -> Path:
    if own := os.environ.get(variable):
        return Path(own).absolute()
    if base := os.environ.get(xdg):
        return Path(base).absolute() / "banger"
    return fallback


def _runtime_fallback() -> Path:
    uid = os.geteuid()
    return Path("/run/banger") if uid == 0 else Path(f"/tmp/banger-{uid}")


class VmPaths(NamedTuple):
    """One VM's files: `state` holds disks and logs, `runtime` the sockets."""

    state: Path
    runtime: Path

    @property
    def root_overlay(self) -> Path:
        return self.state / ROOT_OVERLAY

    @property
    def root_copy(self) -> Path:
        return self.state / ROOT_COPY

    @property
    def root_disk(self) -> Path:
        """The one that the VM has: an overlay, or what engines have that read none."""
        return next((path for path in (self.root_copy, self.root_changes) if path.exists()), self.root_overlay)

    def next_root(self, image: str, name: str) -> Path:
        """A root disk of another image, until the VM's record says that it is the VM's; `name` is its name then."""
        return self.state / f"{NEXT_ROOT}{image}-{name}"

    @property
    def root_changes(self) -> Path:
        """What a dm-snapshot has written over its image; its disk is a device then."""
        return self.state / ROOT_CHANGES

    @property
    def work_disk(self) -> Path:
        return self.state / WORK_DISK

    @property
    def console_log(self) -> Path:
        return self.state / "console.log"

    @property
    def engine_log(self) -> Path:
        return self.state / "engine.log"

    @property
    def known_hosts(self) -> Path:
        """The guest's SSH host keys, pinned at the first login."""
        return self.state / "known_hosts"

    @property
    def opencode(self) -> Path:
        """The credentials of the guest's opencode server."""
        return self.state / "opencode.json"

    @property
    def console_input(self) -> Path:
        """A named pipe: what is written to it is typed on the serial console."""
        return self.state / "console.in"

    @property
    def api_socket(self) -> Path:
        return self.runtime / "api.sock"

    @property
    def vsock_socket(self) -> Path:
        return self.runtime / "v.sock"

    def guest_listener(self, port: int) -> Path:
        """Where the engine connects when the guest dials the host on `port` (hybrid vsock)."""
        return self.runtime / f"v.sock_{port}"


class JailPaths(NamedTuple):
    """Where the jailer makes the chroot of one VM's engine: its layout, below `base`."""

    base: Path
    vm_id: str

    @property
    def directory(self) -> Path:
        return self.base / JAILED / self.vm_id

    @property
    def root(self) -> Path:
        return self.directory / "root"

    @property
    def run(self) -> Path:
        return self.root / "run"

    @property
    def pid_file(self) -> Path:
        return self.root / f"{JAILED}.pid"


class ImagePaths(NamedTuple):
    """A managed image's directory."""

    directory: Path

    @property
    def metadata(self) -> Path:
        return self.directory / "image.json"

    @property
    def root(self) -> Path:
        return self.directory / "root.ext4"

    @property
    def kernel(self) -> Path:
        return self.directory / "vmlinux"

    @property
    def bzimage(self) -> Path:
        return self.directory / "bzImage"

    @property
    def initramfs(self) -> Path:
        return self.directory / "initramfs.cpio"

    @property
    def config(self) -> Path:
        """What the kernel was built with."""
        return self.directory / "kernel.config"

    @property
    def manifest(self) -> Path:
        return self.directory / "packages.json"

    @property
    def modules(self) -> Path:
        """The kernel's modules where the root has none: what is below lib/modules/RELEASE, as a tar archive."""
        return self.directory / "modules.tar"

    @property
    def work_seed(self) -> Path:
        return self.directory / "work-seed.ext4"

    @property
    def lock(self) -> Path:
        """Held while image.json is replaced."""
        return self.directory / ".lock"


class VolumePaths(NamedTuple):
    """A volume's directory."""

    directory: Path

    @property
    def metadata(self) -> Path:
        return self.directory / "volume.json"

    @property
    def disk(self) -> Path:
        return self.directory / WORK_DISK


class BundlePaths(NamedTuple):
    """The runtime bundle's directory: what guests are given."""

    directory: Path

    @property
    def metadata(self) -> Path:
        return self.directory / "bundle.json"

    @property
    def agent(self) -> Path:
        """Banger's own agent, a copy of the one that this version has."""
        return self.directory / "agent"

    @property
    def lock(self) -> Path:
        return self.directory / ".lock"


class EnginePaths(NamedTuple):
    """One installed release of an engine."""

    directory: Path

    @property
    def metadata(self) -> Path:
        return self.directory / "engine.json"

    @property
    def firecracker(self) -> Path:
        return self.directory / "firecracker"

    @property
    def jailer(self) -> Path:
        return self.directory / "jailer"


class Paths(NamedTuple):
    """The three directories and what lies in them."""

    state: Path
    runtime: Path
    cache: Path

    @property
    def database(self) -> Path:
        return self.state / "banger.db"

    @property
    def images(self) -> Path:
        return self.state / "images"

    @property
    def engines(self) -> Path:
        return self.state / "engines"

    @property
    def vms(self) -> Path:
        return self.state / "vms"

    @property
    def volumes(self) -> Path:
        return self.state / "volumes"

    @property
    def bundle(self) -> Path:
        """Unless the settings name another directory."""
        return self.state / "bundle"

    @property
    def ssh_key(self) -> Path:
        """A link to the bundle's key, so that ssh can be told of it without reading settings and bundle."""
        return self.state / "ssh" / "id_ed25519"

    @property
    def reports(self) -> Path:
        return self.state / "reports"

    @property
    def builds(self) -> Path:
        """What the steps of each image's build have printed."""
        return self.state / "builds"

    def build_log(self, operation_id: str) -> Path:
        return self.builds / f"{operation_id}.log"

    @property
    def daemon_log(self) -> Path:
        return self.state / "daemon.log"

    @property
    def daemon_socket(self) -> Path:
        return self.runtime / "api.sock"

    @property
    def daemon_lock(self) -> Path:
        return self.runtime / "daemon.lock"

    @property
    def start_lock(self) -> Path:
        return self.runtime / "start.lock"

    @property
    def accelerators(self) -> Path:
        return self.cache / "accelerators.json"

    @property
    def downloads(self) -> Path:
        return self.cache / "downloads"

    @property
    def layers(self) -> Path:
        """What builds keep of their steps: KEY.qcow2 and KEY.json for each."""
        return self.cache / "layers"

    @property
    def imports(self) -> Path:
        """What imports have unpacked and not yet put into an image."""
        return self.cache / "imports"

    @property
    def exports(self) -> Path:
        """Links to the files that exports are about to write, wherever those are."""
        return self.state / "exports"

    @property
    def jails(self) -> Path:
        return self.state / "jails"

    def jail(self, vm_id: str) -> JailPaths:
        return JailPaths(self.jails, vm_id)

    def vm(self, vm_id: str) -> VmPaths:
        return VmPaths(self.vms / vm_id, self.runtime / "vms" / vm_id)

    @property
    def appliances(self) -> Path:
        return self.state / "appliances"

    def appliance(self, machine_id: str) -> VmPaths:
        """Of a short-lived machine of banger's own, which is nobody's VM."""
        return VmPaths(self.appliances / machine_id, self.runtime / "vms" / machine_id)

    def image(self, name: str) -> ImagePaths:
        return ImagePaths(self.images / name)

    def volume(self, name: str) -> VolumePaths:
        return VolumePaths(self.volumes / name)

    def engine(self, name: str, version: str) -> EnginePaths:
        return EnginePaths(self.engines / name / version)


def default_paths() -> Paths:
    """The directories of the person who runs us. Raises `Invalid` if sockets would not fit."""
    home = Path.home()
    paths = Paths(
        state=_home("BANGER_STATE_DIR", "XDG_STATE_HOME", home / ".local/state/banger"),
        runtime=_home("BANGER_RUNTIME_DIR", "XDG_RUNTIME_DIR", _runtime_fallback()),
        cache=_home("BANGER_CACHE_DIR", "XDG_CACHE_HOME", home / ".cache/banger"),
    )
    if len(os.fsencode(paths.runtime)) + _LONGEST_RUNTIME_NAME > SOCKET_PATH_MAX:
        raise Invalid(
            f"the runtime directory's path is too long for Unix sockets: {paths.runtime}",
            hint=f"set BANGER_RUNTIME_DIR to a path of at most {SOCKET_PATH_MAX - _LONGEST_RUNTIME_NAME} bytes",
        )
    return paths
