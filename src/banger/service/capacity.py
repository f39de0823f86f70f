"""What this host has, and what VMs and images have taken of it."""

from collections.abc import Callable, Sequence
from pathlib import Path

from banger.config import Settings
from banger.model.capacity import Capacity, Filesystem, Host, Used, summarize
from banger.model.sizes import MIB
from banger.model.vm import Vm, VmState
from banger.paths import Paths
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
    ) -> None:
        self._paths = paths
        self._reserve = settings.disk_reserve_mib * MIB
        self._vms = vms
        self._filesystem = filesystem

    async def show(self) -> Capacity:
        """As it is now. A VM that is deleted meanwhile takes what is left of it."""
        return await in_thread(self._measure, self._vms.all())

    def _measure(self, vms: Sequence[Vm]) -> Capacity:
        device = self._paths.state.stat().st_dev
        images = [(path.name, measure(path, device)) for path in _directories(self._paths.images)]
        directory = str(self._paths.vms)
        used = [(vm, _of_vm(vm, f"{directory}/{vm.id}", device)) for vm in vms]
        host = Host(cpu_count(), memory_total_bytes() // MIB, self._filesystem(self._paths.state))
        return summarize(str(self._paths.state), host, self._reserve, images, used)


def _of_vm(vm: Vm, directory: str, device: int) -> Used:
    # a disk that is being copied has a name of its own yet
    return measure(directory, device) if vm.state is VmState.CREATING else measure_disks(directory, device)


def _directories(path: Path) -> list[Path]:
    """Images, those that are damaged or being made too: they take room all the same."""
    return sorted(entry for entry in path.iterdir() if entry.is_dir()) if path.is_dir() else []
