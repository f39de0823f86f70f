"""/images"""

from litestar import Controller, delete, get, post

from banger.api.services import Services
from banger.model.catalogue import ImageDocument, PruneSpec, RenameSpec
from banger.model.commit import CommitSpec
from banger.model.image import BootstrapSpec, ExportSpec, ImportSpec
from banger.model.operation import Operation
from banger.model.recipe import BuildSpec
from banger.model.registration import PromoteSpec, RegisterSpec


class Images(Controller):
    path = "/images"
    tags = ("images",)

    @get(summary="Every image, by name, damaged ones too")
    async def list_images(self, services: Services) -> list[ImageDocument]:
        return services.catalogue.list()

    @get("/{name:str}", summary="One image")
    async def show_image(self, name: str, services: Services) -> ImageDocument:
        return services.catalogue.show(name)

    @delete("/{name:str}", status_code=202, summary="Delete an image that no VM uses")
    async def delete_image(self, name: str, services: Services, force: bool = False) -> Operation:
        return services.catalogue.delete(name, force=force)

    @post("/{name:str}/rename", status_code=202, summary="Give an image that no VM uses another name")
    async def rename_image(self, name: str, data: RenameSpec, services: Services) -> Operation:
        return services.catalogue.rename(name, data.name)

    @post("/prune", status_code=202, summary="Remove what can be made again: layers, downloads, leftovers")
    async def prune_images(self, data: PruneSpec, services: Services) -> Operation:
        return services.catalogue.prune(data)

    @post("/bootstrap", status_code=202, summary="Build a distribution's image from its packages")
    async def bootstrap_image(self, data: BootstrapSpec, services: Services) -> Operation:
        return services.images.bootstrap(data)

    @post("/register", status_code=202, summary="Make an image of files that stay where they are")
    async def register_image(self, data: RegisterSpec, services: Services) -> Operation:
        return services.registration.register(data)

    @post("/{name:str}/promote", status_code=202, summary="Copy the files of a registered image in")
    async def promote_image(self, name: str, data: PromoteSpec, services: Services) -> Operation:
        return services.registration.promote(name, data)

    @post("/build", status_code=202, summary="Build an image from another, by a recipe")
    async def build_image(self, data: BuildSpec, services: Services) -> Operation:
        return services.builds.build(data)

    @post("/commit", status_code=202, summary="Make an image of a VM's root")
    async def commit_image(self, data: CommitSpec, services: Services) -> Operation:
        return services.commits.commit(data)

    @post("/{name:str}/verify", status_code=202, summary="Compare an image with its digests, check its filesystems")
    async def verify_image(self, name: str, services: Services) -> Operation:
        return services.images.verify(name)

    @post("/{name:str}/export", status_code=202, summary="Pack an image into one file")
    async def export_image(self, name: str, data: ExportSpec, services: Services) -> Operation:
        return services.archives.export_image(name, data)

    @post("/import", status_code=202, summary="Make an image of an archive, or only check it")
    async def import_image(self, data: ImportSpec, services: Services) -> Operation:
        return services.archives.import_image(data)
