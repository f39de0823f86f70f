"""Images: list, show, bootstrap."""

from banger.guest import bundle
from banger.images import catalog
from banger.images.debian import DebianRequest, bootstrap
from banger.images.rootfs import Seed
from banger.jobs.operations import Job, Operations
from banger.model.image import BootstrapSpec, Image
from banger.model.operation import Operation
from banger.paths import Paths
from banger.service.keys import public_key


class ImageService:
    """Everything that the API offers of images."""

    def __init__(self, paths: Paths, operations: Operations) -> None:
        self._paths = paths
        self._operations = operations

    def list(self) -> list[Image]:
        return catalog.list_images(self._paths)

    def show(self, name: str) -> Image:
        return catalog.find_image(self._paths, name)

    def bootstrap(self, spec: BootstrapSpec) -> Operation:
        """Begin `image.bootstrap`. Raises `Conflict` when an image has the name."""
        target = f"image/{spec.name}"
        self._operations.check_free(target)
        catalog.check_free(self._paths, spec.name)

        async def work(job: Job) -> Image:
            seed = _seed(await public_key(self._paths.ssh_key))
            request = DebianRequest(name=spec.name, seed=seed, mirror=spec.mirror)
            return await bootstrap(self._paths, request, job)

        return self._operations.begin("image.bootstrap", target, work)

    async def sweep(self) -> None:
        """Remove what a killed daemon left half-made; at start only."""
        await catalog.sweep(self._paths)


def _seed(key: str) -> Seed:
    """The guest's side of banger, and the key that `vm ssh` will use."""
    files = {f"/{path}": content for path, content in bundle.agent_files().items()}
    files["/root/.ssh/authorized_keys"] = (f"{key}\n".encode(), 0o600)
    links = {f"/{path}": target for path, target in bundle.links().items()}
    return Seed(files=files, symlinks=links, compile_dirs=tuple(f"/{path}" for path in bundle.COMPILE))
