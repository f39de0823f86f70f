"""Images: bootstrap, verify; service/catalogue.py has what concerns all of them."""

from collections.abc import Mapping

from banger.guest import bundle
from banger.guest.opencode import opencode_files, opencode_links
from banger.images import catalog
from banger.images.debian import DebianRequest, bootstrap
from banger.images.parts import sweep_parts
from banger.images.rootfs import Seed
from banger.images.verify import verify_image
from banger.jobs.operations import Job, Operations
from banger.model.home import SHELL_FILES
from banger.model.image import BootstrapSpec, Image
from banger.model.names import validate_name
from banger.model.operation import Operation
from banger.paths import Paths
from banger.service.bundle import RuntimeBundle
from banger.system.files import in_thread


class ImageService:
    """How images are made, and looked at."""

    def __init__(self, paths: Paths, operations: Operations, bundle: RuntimeBundle, npm_registry: str) -> None:
        self._paths = paths
        self._bundle = bundle
        self._operations = operations
        self._npm_registry = npm_registry

    def bootstrap(self, spec: BootstrapSpec) -> Operation:
        """Begin `image.bootstrap`. Raises `Conflict` when an image has the name."""
        target = f"image/{spec.image}"
        self._operations.check_free(target)
        catalog.check_free(self._paths, spec.image)

        async def work(job: Job) -> Image:
            key = await self._bundle.key()
            request = DebianRequest(
                name=spec.image,
                seed=_seed(key.line, self._bundle.agent(), opencode=spec.with_opencode),
                seed_key=key.fingerprint,
                mirror=spec.mirror,
                minimal=spec.minimal,
                opencode=spec.with_opencode,
                npm_registry=self._npm_registry or None,
                offline=spec.offline,
            )
            return await bootstrap(self._paths, request, job)

        return self._operations.begin("image.bootstrap", target, work)

    def verify(self, name: str) -> Operation:
        """Begin `image.verify`, which changes nothing. Raises `NotFound`."""
        self._operations.check_free(f"image/{name}")
        if not self._paths.image(validate_name(name, "image name")).directory.is_dir():
            catalog.find_image(self._paths, name)
        return self._operations.begin("image.verify", f"image/{name}", lambda job: verify_image(self._paths, name, job))

    async def sweep(self) -> None:
        """Remove what a killed daemon left half-made, and parts that were replaced; at start only."""
        await catalog.sweep(self._paths)
        await in_thread(sweep_parts, self._paths)


def _seed(key: str, agent: Mapping[str, bytes], *, opencode: bool) -> Seed:
    """The guest's side of banger with this agent in it, and the key that `vm ssh` will use."""
    ours = {f"{bundle.LIBRARY}/{name}" for name in bundle.agent_tree()}
    found = {path: content for path, content in bundle.agent_files().items() if path not in ours}
    found |= {f"{bundle.LIBRARY}/{name}": (content, 0o644) for name, content in agent.items()}
    found |= opencode_files() if opencode else {}
    files = {f"/{path}": content for path, content in found.items()}
    # Debian's own are empty of all that people look for; ours know ~/.local/bin and completion
    files |= {f"/root/{file.path}": (file.content, file.mode) for file in SHELL_FILES}
    files["/root/.ssh/authorized_keys"] = (f"{key}\n".encode(), 0o600)
    made = bundle.links() | (opencode_links() if opencode else {})
    links = {f"/{path}": target for path, target in made.items()}
    return Seed(files=files, symlinks=links, compile_dirs=tuple(f"/{path}" for path in bundle.COMPILE))
