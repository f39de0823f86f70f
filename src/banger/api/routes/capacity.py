"""/capacity"""

from litestar import Controller, get

from banger.api.services import Services
from banger.model.capacity import Capacity


class CapacityRoutes(Controller):
    path = "/capacity"
    tags = ("capacity",)

    @get(summary="What VMs, images and volumes take of this host, and what is left")
    async def show_capacity(self, services: Services) -> Capacity:
        return await services.capacity.show()
