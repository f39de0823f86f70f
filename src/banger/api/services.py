"""What the routes are given: the services, built by `banger.daemon`."""

from collections.abc import Callable
from dataclasses import dataclass

from banger.jobs.operations import Operations
from banger.model.daemon import DaemonStatus
from banger.service.archives import Archives
from banger.service.builds import BuildService
from banger.service.capacity import CapacityService
from banger.service.catalogue import Catalogue
from banger.service.check import CheckService
from banger.service.commits import CommitService
from banger.service.engines import EngineService
from banger.service.images import ImageService
from banger.service.registration import Registration
from banger.service.report import Reporter
from banger.service.vms import VmService
from banger.service.volumes import VolumeService


@dataclass(frozen=True)
class Services:
    vms: VmService
    volumes: VolumeService
    check: CheckService
    images: ImageService
    builds: BuildService
    commits: CommitService
    catalogue: Catalogue
    registration: Registration
    archives: Archives
    engines: EngineService
    capacity: CapacityService
    operations: Operations
    reporter: Reporter
    daemon_status: Callable[[], DaemonStatus]
    stop_daemon: Callable[[], None]
