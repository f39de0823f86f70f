"""/volumes"""

from litestar import Controller, delete, get, post

from banger.api.services import Services
from banger.model.documents import VolumeDocument
from banger.model.operation import Operation
from banger.model.volume import AttachSpec


class Volumes(Controller):
    path = "/volumes"
    tags = ("volumes",)

    @get(summary="Every volume, by name")
    async def list_volumes(self, services: Services) -> list[VolumeDocument]:
        return services.volumes.list()

    @get("/{name:str}", summary="One volume")
    async def show_volume(self, name: str, services: Services) -> VolumeDocument:
        return services.volumes.show(name)

    @post("/{name:str}/attach", status_code=202, summary="Make a volume the work disk of a stopped VM")
    async def attach_volume(self, name: str, data: AttachSpec, services: Services) -> Operation:
        return services.volumes.attach(name, data.vm)

    @delete("/{name:str}", status_code=202, summary="Delete a volume and all its data")
    async def delete_volume(self, name: str, services: Services) -> Operation:
        return services.volumes.delete(name)
