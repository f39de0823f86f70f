"""What this host has, and what VMs, images and volumes have taken of it."""

from collections.abc import Callable, Sequence
from pathlib import Path

from banger.config import Settings
from banger.model.capacity import Capacity, Filesystem, Host, Taken, summarize
from banger.model.sizes import MIB
from banger.model.vm import Vm, VmState
from banger.paths import Paths
from banger.storage.sharing import SharedOf, Sharing
from banger.storage.usage import measure, measure_disks
from banger.store.vms import VmStore
from banger.system.files import in_thread
from banger.system.filesystems import filesystem_of
from banger.system.host import cpu_count, memory_total_bytes


class CapacityService:
    """Everything that the API offers of capacity."""

    def __init__(
        self,
        paths: Paths,
        settings: Settings,
        vms: VmStore,
        filesystem: Callable[[Path], Filesystem] = filesystem_of,
        sharing: Sharing | None = None,
    ) -> None:
        self._paths = paths
        self._reserve = settings.disk_reserve_mib * MIB
        self._vms = vms
        self._filesystem = filesystem
        self._sharing = sharing or Sharing()

    async def show(self) -> Capacity:
        """As it is now. A VM that is deleted meanwhile takes what is left of it."""
        return await in_thread(self._measure, self._vms.all())

    def _measure(self, vms: Sequence[Vm]) -> Capacity:
        state = self._paths.state
        taken = self._sharing.look(state, lambda shared_of: self._taken(vms, shared_of))
        host = Host(cpu_count(), memory_total_bytes() // MIB, self._filesystem(state))
        return summarize(str(state), host, self._reserve, taken)

    def _taken(self, vms: Sequence[Vm], shared_of: SharedOf) -> Taken:
        paths, device = self._paths, self._paths.state.stat().st_dev
        disks = measure_disks(str(paths.vms), [vm.id for vm in vms], device, shared_of)
        return Taken(
            [(path.name, measure(path, device, shared_of)) for path in _directories(paths.images)],
            [
                # a disk that is being copied has a name of its own yet
                (vm, measure(paths.vm(vm.id).state, device, shared_of) if vm.state is VmState.CREATING else used)
                for vm, used in zip(vms, disks, strict=True)
            ],
            [(path.name, measure(path, device, shared_of)) for path in _directories(paths.volumes)],
        )


def _directories(path: Path) -> list[Path]:
    """Images or volumes, those that are damaged or being made too: they take room all the same."""
    return sorted(entry for entry in path.iterdir() if entry.is_dir()) if path.is_dir() else []
