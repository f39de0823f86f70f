"""/engines"""

from typing import Annotated

from litestar import Controller, delete, get, post
from litestar.params import Parameter

from banger.api.services import Services
from banger.model.engine import EngineInfo, EngineInstallSpec
from banger.model.operation import Operation

Verify = Annotated[bool, Parameter(description="Compare installed programs with their recorded digests")]


class Engines(Controller):
    path = "/engines"
    tags = ("engines",)

    @get(summary="Every engine on this host, usable or not")
    async def list_engines(self, services: Services, verify: Verify = False) -> list[EngineInfo]:
        return await services.engines.list(check_digests=verify)

    @post("/install", status_code=202, summary="Install a release of Firecracker")
    async def install_engine(self, data: EngineInstallSpec, services: Services) -> Operation:
        return services.engines.install(data)

    @delete("/{name:str}/{version:str}", status_code=204, summary="Remove an installed release")
    async def remove_engine(self, name: str, version: str, services: Services) -> None:
        await services.engines.remove(name, version)
