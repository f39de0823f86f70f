"""/images"""

from litestar import Controller, get, post

from banger.api.services import Services
from banger.model.image import BootstrapSpec, Image
from banger.model.operation import Operation
from banger.model.recipe import BuildSpec


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

    @post("/build", status_code=202, summary="Build an image from another, by a recipe")
    async def build_image(self, data: BuildSpec, services: Services) -> Operation:
        return services.builds.build(data)

    @post("/{name:str}/verify", status_code=202, summary="Compare an image with its digests, check its filesystems")
    async def verify_image(self, name: str, services: Services) -> Operation:
        return services.images.verify(name)
