"""/images"""

from litestar import Controller, get, post

from banger.api.services import Services
from banger.model.image import BootstrapSpec, ExportSpec, Image, ImportSpec
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

    @post("/{name:str}/verify", status_code=202, summary="Compare an image with its digests, check its filesystems")
    async def verify_image(self, name: str, services: Services) -> Operation:
        return services.images.verify(name)

    @post("/{name:str}/export", status_code=202, summary="Pack an image into one file")
    async def export_image(self, name: str, data: ExportSpec, services: Services) -> Operation:
        return services.archives.export_image(name, data)

    @post("/import", status_code=202, summary="Make an image of an archive, or only check it")
    async def import_image(self, data: ImportSpec, services: Services) -> Operation:
        return services.archives.import_image(data)
