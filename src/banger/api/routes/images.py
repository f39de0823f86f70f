"""/images"""

from litestar import Controller, get, post

from banger.api.services import Services
from banger.model.commit import CommitSpec
from banger.model.image import BootstrapSpec, Image
from banger.model.operation import Operation


class Images(Controller):
    path = "/images"
    tags = ("images",)

    @get(summary="Every image, by name")
    async def list_images(self, services: Services) -> list[Image]:
        return services.images.list()

    @get("/{name:str}", summary="One image")
    async def show_image(self, name: str, services: Services) -> Image:
        return services.images.show(name)

    @post("/bootstrap", status_code=202, summary="Build a distribution's image from its packages")
    async def bootstrap_image(self, data: BootstrapSpec, services: Services) -> Operation:
        return services.images.bootstrap(data)

    @post("/commit", status_code=202, summary="Make an image of a VM's root")
    async def commit_image(self, data: CommitSpec, services: Services) -> Operation:
        return services.commits.commit(data)

    @post("/{name:str}/verify", status_code=202, summary="Compare an image with its digests, check its filesystems")
    async def verify_image(self, name: str, services: Services) -> Operation:
        return services.images.verify(name)
